// What a card can do at most: additions to random counters, in the L2 cache or in shared memory, and nothing else.
typedef unsigned long long u64;
typedef long long i64;
typedef unsigned int u32;

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(T, NAME) extern __shared__ __align__(16) T NAME[]
#endif

// As cheap as random columns come: a step of a 32-bit linear congruential generator, its high bits the column.
__device__ inline u32 column(u32 *state, u32 width) {
  *state = *state * 1664525u + 1013904223u;
  return (u32)(((u64)*state * width) >> 32);
}

extern "C" __global__ void random_additions_l2(u32 *table, u32 width, int each) {
  u32 state = (blockIdx.x * blockDim.x + threadIdx.x) * 2654435761u + 1;
  for (int i = 0; i < each; ++i) atomicAdd(table + column(&state, width), 1u);
}

extern "C" __global__ void random_additions_shared(u32 *table, u32 width, int each) {
  DYNAMIC_SHARED(u32, counters);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) counters[i] = 0;
  __syncthreads();
  u32 state = (blockIdx.x * blockDim.x + threadIdx.x) * 2654435761u + 1;
  for (int i = 0; i < each; ++i) atomicAdd(counters + column(&state, width), 1u);
  __syncthreads();
  for (u32 i = threadIdx.x; i < width; i += blockDim.x)
    if (counters[i]) atomicAdd(table + i, counters[i]);
}
