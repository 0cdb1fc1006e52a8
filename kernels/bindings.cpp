// The Python module, compiled once per target. Functions take what the headers list, in the same order: arrays as
// addresses (of the host or of the device, by target), sizes, and the stream last. They answer None, or what went
// wrong. Nothing is checked here: the package dispose_rt/kernels, the only caller, checks dtypes, shapes and devices.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "accumulate_tile.h"
#include "begin_step.h"
#include "crop_person.h"
#include "frames_to_u8.h"
#include "gather_frames.h"
#include "guided_euler_step.h"
#include "half.h"
#include "letterbox.h"
#include "nearest_image.h"
#include "normalize_frames.h"
#include "rasterize_sparse_flow.h"
#include "resample_flow.h"
#include "sample_points.h"
#include "scatter_point_features.h"
#include "splat_gaussian_flow.h"

namespace {

// How an argument arrives from Python: a pointer as its address, anything else as itself.
template <typename Argument>
struct Received {
    using Type = Argument;
    static Argument pass(Type value) { return value; }
};

template <typename Element>
struct Received<Element*> {
    using Type = std::uintptr_t;
    static Element* pass(Type address) { return reinterpret_cast<Element*>(address); }
};

template <typename... Arguments>
void define(pybind11::module_& module, const char* name, dispose_rt::Status (*kernel)(Arguments...)) {
    module.def(
        name,
        [kernel](typename Received<Arguments>::Type... received) {
            return kernel(Received<Arguments>::pass(received)...);
        },
        pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(DISPOSE_RT_MODULE, module) {
    using namespace dispose_rt;
    module.doc() = "Kernels of dispose_rt for one target. Private: use dispose_rt.kernels.";
    module.attr("TARGET") = kTarget;
    define(module, "splat_gaussian_flow", &splat_gaussian_flow);
    define(module, "rasterize_sparse_flow", &rasterize_sparse_flow);
    define(module, "sample_points", &sample_points);
    define(module, "scatter_point_features_f32", &scatter_point_features<float>);
    define(module, "scatter_point_features_f16", &scatter_point_features<Half>);
    define(module, "scatter_point_features_bf16", &scatter_point_features<Bfloat16>);
    define(module, "gather_frames", &gather_frames);
    define(module, "begin_step", &begin_step);
    define(module, "accumulate_tile", &accumulate_tile);
    define(module, "guided_euler_step", &guided_euler_step);
    define(module, "frames_to_u8", &frames_to_u8);
    define(module, "letterbox", &letterbox);
    define(module, "crop_person", &crop_person);
    define(module, "normalize_frames", &normalize_frames);
    define(module, "resample_flow", &resample_flow);
    define(module, "nearest_image", &nearest_image);
}
