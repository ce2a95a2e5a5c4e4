// As much of CUDA as cairn.cu needs, on the CPU: a block's threads are contexts that take turns, blocks run one by one.
// At atomics a thread may lose its turn to any other, so that what does not hold in every order is found out.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC_SHARED(T, NAME) T *NAME = (T *)dynamic_shared

struct Index {
  unsigned x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
enum State { READY, AT_BARRIER, IN_WARP, DONE };
struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  unsigned mask, result;
  unsigned long long value;
};

static Index threadIdx, blockIdx, blockDim, gridDim;
static void *dynamic_shared;
static std::vector<Thread> threads;
static ucontext_t scheduler;
static unsigned running;
static uint64_t dice = 88172645463325252ull;  // xorshift64
static const size_t STACK = 128 * 1024;

static unsigned roll(unsigned sides) {
  dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
  return (unsigned)((dice >> 32) % sides);
}
static void wait_as(State state) {
  unsigned self = running;
  threads[self].state = state;
  swapcontext(&threads[self].context, &scheduler);
  threadIdx.x = running = self;
}
static void maybe_others() {
  if (!roll(8)) wait_as(READY);
}

static inline void __syncthreads() { wait_as(AT_BARRIER); }
static inline unsigned __activemask() { return 1u << (threadIdx.x & 31); }  // no other is known to be where this one is
static inline unsigned __match_any_sync(unsigned mask, unsigned long long value) {
  unsigned self = 1u << (threadIdx.x & 31);
  if (mask == self) return self;
  threads[running].mask = mask, threads[running].value = value;
  wait_as(IN_WARP);
  return threads[running].result;
}
static inline int __ffs(int bits) { return __builtin_ffs(bits); }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename T>
static T atomicAdd(T *where, T value) {
  maybe_others();
  T before = *where;
  *where += value;
  return before;
}
template <typename T>
static T atomicCAS(T *where, T expected, T value) {
  maybe_others();
  T before = *where;
  if (before == expected) *where = value;
  maybe_others();
  return before;
}

// Each operation rounded by itself: compile with -ffp-contract=off.
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return std::sqrt(a); }
static inline long long __double_as_longlong(double a) {
  long long bits;
  std::memcpy(&bits, &a, sizeof bits);
  return bits;
}
using std::fmax;
using std::fmin;
using std::rint;

// Let go the warps all of whose named lanes wait for one another, or, when all threads that live do, the barrier.
static bool release() {
  bool any = false, all = true;
  for (unsigned first = 0; first < threads.size(); first += 32) {
    unsigned here = 0, wanted = 0;
    for (unsigned t = first; t < first + 32 && t < threads.size(); ++t)
      if (threads[t].state == IN_WARP) here |= 1u << (t - first), wanted |= threads[t].mask;
    if (!here || here != wanted) continue;
    for (unsigned t = first; t < first + 32; ++t) {
      threads[t].result = 0, threads[t].state = READY, any = true;
      for (unsigned u = first; u < first + 32; ++u)
        if (threads[u].value == threads[t].value) threads[t].result |= 1u << (u - first);
    }
  }
  if (any) return true;
  for (auto &thread : threads) all = all && (thread.state == AT_BARRIER || thread.state == DONE);
  for (auto &thread : threads)
    if (all && thread.state == AT_BARRIER) thread.state = READY, any = true;
  return any;
}

template <typename Kernel>
struct Entry {
  static const Kernel *kernel;
  static void run() {
    (*kernel)();
    threads[running].state = DONE;
  }
};
template <typename Kernel>
const Kernel *Entry<Kernel>::kernel;

template <typename Kernel>
static void launch(Index grid, unsigned block, size_t shared, const Kernel &kernel) {
  std::vector<unsigned long long> memory(shared / 8 + 2, 0xDEADBEEFDEADBEEFull);  // nothing has set it
  dynamic_shared = (void *)(((uintptr_t)memory.data() + 15) & ~(uintptr_t)15);
  gridDim = grid, blockDim = {block, 1}, Entry<Kernel>::kernel = &kernel;
  threads.resize(block);
  for (unsigned b = 0; b < grid.x * grid.y; ++b) {
    blockIdx = {b % grid.x, b / grid.x};
    for (auto &thread : threads) {
      if (!thread.stack) thread.stack.reset(new char[STACK]);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get(), thread.context.uc_stack.ss_size = STACK;
      thread.context.uc_link = &scheduler;
      makecontext(&thread.context, Entry<Kernel>::run, 0);
      thread.state = READY;
    }
    for (bool ran = true; ran;) {
      ran = false;
      unsigned first = roll(block);
      for (unsigned i = 0; i < block; ++i) {
        unsigned t = (first + i) % block;
        if (threads[t].state != READY) continue;
        ran = true, threadIdx.x = running = t;
        swapcontext(&scheduler, &threads[t].context);
      }
      ran = ran || release();
    }
    for (auto &thread : threads)
      if (thread.state != DONE) std::fprintf(stderr, "a block's threads wait for one another for ever\n"), std::abort();
  }
}
