"""Times whole animations with the engines of a directory: what a user waits for, stage by stage (`dispose-rt bench`).

One run to warm up, in which engines load and tune, then some more; every run writes an mp4. The record of it, as
JSON holds it:

    command, date (UTC), machine {platform, cpu, memory_bytes, gpus}, versions {python, dispose-rt, ...}
    engines   {folder, backend, precision, targets, sizes}
    device    {asked, opened, name}: opened is "cpu" or "cuda:N", name the GPU's or the processor's
    settings  {clip, clip_sha256, frames, tiles, overlap, steps, stride, guidance_scale}: frames are the new ones,
              without the reference
    load_s    opening the directory, and loading all engines but the two that find people
    warm_up   a run, as below
    runs      [{frames, total_s, s_per_frame, first_frame_s, peak_bytes, stages_s {stage: s}, launches_per_step,
              graph_problem}]: first_frame_s is from the call until the first decoded frames were handed on
    summary   {total_s, s_per_frame, first_frame_s, peak_bytes: {median, spread}, stages_s {stage: {median, spread}}}
    graph     {captured, launches_per_step, problem}: 1 where a whole step is one graph, or else one per tile, whose
              networks are a graph each
    tile_step_s  median seconds of the denoise stage by steps and tiles
    lengths   [{frames, tiles, total_s, s_per_frame, first_frame_s, peak_bytes, stages_s}], as in summary; empty
              without --lengths
    networks  [{network, backend, device, batch, seconds, spread_s, rounds}]; empty without --networks
    baseline  null; benchmarks/speed/latency.py of the source tree puts eager PyTorch there
    comparison  {with, date, ratios {stage: then / now}}; only with --compare

A spread is the largest value minus the smallest.
"""
