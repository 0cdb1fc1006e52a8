// The smallest program with a kernel: CMake compiles it to find out whether a CUDA compiler works.
#include <cuda_runtime.h>

__global__ void fill(float* values) { values[threadIdx.x] = 1.0f; }

extern "C" int launch(float* values) {
    fill<<<1, 32>>>(values);
    return static_cast<int>(cudaGetLastError());
}
