// The same module, for the GPU.
#include "bindings.cpp"
