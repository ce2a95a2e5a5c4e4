// As much of CUDA as cairn.cu needs, on the CPU: a block is so many threads with a barrier, blocks run one by one.
#pragma once
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __shared__ static

struct Index {
  unsigned x;
};
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
static std::barrier<> *block_barrier;

static void __syncthreads() { block_barrier->arrive_and_wait(); }

template <typename T>
static T atomicAdd(T *where, T value) {
  return __atomic_fetch_add(where, value, __ATOMIC_RELAXED);
}
template <typename T>
static T atomicCAS(T *where, T expected, T value) {
  __atomic_compare_exchange_n(where, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

// Each operation rounded by itself: compile with -ffp-contract=off.
static double __dadd_rn(double a, double b) { return a + b; }
static double __dmul_rn(double a, double b) { return a * b; }
static double __ddiv_rn(double a, double b) { return a / b; }
static double __dsqrt_rn(double a) { return std::sqrt(a); }
using std::fmax;
using std::fmin;
using std::rint;

template <typename Kernel>
static void launch(unsigned grid, unsigned block, Kernel kernel) {
  gridDim = {grid}, blockDim = {block};
  for (unsigned b = 0; b < grid; ++b) {
    blockIdx = {b};
    std::barrier<> barrier(block);
    block_barrier = &barrier;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < block; ++t)
      threads.emplace_back([&kernel, t] {
        threadIdx = {t};
        kernel();
      });
    for (auto &thread : threads) thread.join();
  }
}
