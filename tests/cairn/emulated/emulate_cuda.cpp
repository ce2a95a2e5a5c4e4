// A CUDA source as a shared library: EMULATE(name) exports launch_name(grid x, grid y, block, shared bytes, arguments),
// where arguments point to the kernel's own, as cuLaunchKernel has them. cupy.py writes both files that are included.
#include "emulate_cuda.h"

#include <tuple>
#include <utility>

#include "source.cu"

template <auto kernel>
struct Emulated;
template <typename... Arguments, void (*kernel)(Arguments...)>
struct Emulated<kernel> {
  template <size_t... I>
  static void call(void **pointers, std::index_sequence<I...>) {
    kernel(*(std::tuple_element_t<I, std::tuple<Arguments...>> *)pointers[I]...);
  }
  static int run(unsigned x, unsigned y, unsigned block, size_t shared, void **pointers, size_t given) {
    if (given != sizeof...(Arguments)) return 1;
    launch({x, y}, block, shared, [=] { call(pointers, std::index_sequence_for<Arguments...>()); });
    return 0;
  }
  static const char *sizes() {
    static const char found[] = {(char)('0' + sizeof(Arguments))..., 0};
    return found;
  }
};
#define EMULATE(NAME)                                                                                       \
  extern "C" int launch_##NAME(unsigned x, unsigned y, unsigned block, size_t shared, void **p, size_t n) { \
    return Emulated<NAME>::run(x, y, block, shared, p, n);                                                  \
  }                                                                                                         \
  extern "C" const char *sizes_##NAME() { return Emulated<NAME>::sizes(); }

#include "names.inc"
