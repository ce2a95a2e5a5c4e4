// cairn.cu as a shared library: EMULATE(name) exports launch_name(grid, block, the kernel's own arguments…).
#include "emulate_cuda.h"
#include "cairn.cu"

template <auto kernel>
struct Emulated;
template <typename... Arguments, void (*kernel)(Arguments...)>
struct Emulated<kernel> {
  static void run(unsigned grid, unsigned block, Arguments... arguments) {
    launch(grid, block, [=] { kernel(arguments...); });
  }
};
#define EMULATE(NAME) extern "C" { void (*launch_##NAME())() { return (void (*)()) & Emulated<NAME>::run; } }

EMULATE(sketch_update_int32)
EMULATE(sketch_update_int64)
EMULATE(sketch_estimate_int32)
EMULATE(sketch_estimate_int64)
EMULATE(count_keys_int32)
EMULATE(count_keys_int64)
EMULATE(count_pixels_int32)
EMULATE(count_pixels_int64)
EMULATE(pixel_keys)
