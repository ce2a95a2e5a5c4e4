// The sketch and the quantiser on a GPU. The definitions are sketch_numpy.py and pixels_numpy.py; every result equals
// theirs bit for bit: counters are integers, and the doubles are rounded operation by operation (no fused multiply-add).
//
// One source for NVRTC (cupy_.py), for nvcc (a check of its syntax) and for g++ (tests/cairn/emulate_cuda.h).
// Compile with -DCOMPONENTS=D -DBANDS=B, the quantiser's components and bands.

typedef unsigned long long u64;
typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;

#ifndef COMPONENTS
#define COMPONENTS 8
#endif
#ifndef BANDS
#define BANDS 35
#endif

static const int MAX_DEPTH = 64;
static const int SLOT_BITS = 11;  // 2^11 slots of 12 bytes: 24 KB of shared memory a block
static const int SLOTS = 1 << SLOT_BITS;
static const int WEIGHTS = BANDS * COMPONENTS;
static const u64 NO_KEY = 0xFFFFFFFFFFFFFFFFull;  // BACKGROUND; also a slot that is empty

__device__ inline u64 mix(u64 x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Twice the column, plus one for a negative sign.
__device__ inline u32 place(u64 mixed, const u64 *row, u64 width) {
  u64 h = (row[0] + (mixed >> 32)) * (row[1] + (mixed & 0xFFFFFFFFull)) + row[2];
  return (u32)(((h >> 32) * (2 * width)) >> 32);
}

__device__ inline void add(int *counter, i64 value) { atomicAdd((u32 *)counter, (u32)value); }
__device__ inline void add(i64 *counter, i64 value) { atomicAdd((u64 *)counter, (u64)value); }

// A sketch, or the prefix levels of a counts plan: tables T[levels][depth][width] in one piece, the dense one beside.
template <typename T>
struct Tables {
  T *sketches;
  const int *shifts;  // bits to cut off a key for each level
  int levels;
  T *dense;  // may be null
  int dense_shift;
  const u64 *seeds;  // [depth][3]
  int depth;
  i64 width;

  __device__ void count(u64 key, i64 times) const {
    for (int level = 0; level < levels; ++level) {
      u64 mixed = mix(key >> shifts[level]);
      T *row = sketches + (i64)level * depth * width;
      for (int r = 0; r < depth; ++r, row += width) {
        u32 t = place(mixed, seeds + 3 * r, (u64)width);
        add(row + (t >> 1), (t & 1) ? -times : times);
      }
    }
    if (dense) add(dense + (key >> dense_shift), times);
  }
};

// Equal keys of a block are added up in shared memory first. A slot belongs to the key that comes first, which is
// mostly a frequent one; the others go to the tables at once. This is what keeps hot counters from being fought over.
struct Slots {
  u64 *keys;
  u32 *counts;

  __device__ void clear() const {
    for (int i = threadIdx.x; i < SLOTS; i += blockDim.x) keys[i] = NO_KEY, counts[i] = 0;
    __syncthreads();
  }
  template <typename T>
  __device__ void take(u64 key, const Tables<T> &tables) const {
    if (key == NO_KEY) return;
    int slot = (int)((key * 0x9E3779B97F4A7C15ull) >> (64 - SLOT_BITS));
    u64 held = keys[slot];
    if (held == NO_KEY) held = atomicCAS(keys + slot, NO_KEY, key);
    if (held == NO_KEY || held == key)
      atomicAdd(counts + slot, 1u);
    else
      tables.count(key, 1);
  }
  template <typename T>
  __device__ void flush(const Tables<T> &tables) const {
    __syncthreads();
    for (int i = threadIdx.x; i < SLOTS; i += blockDim.x)
      if (counts[i]) tables.count(keys[i], counts[i]);
  }
};

// How a pixel becomes a key; pixels_numpy.keys.
struct Quantiser {
  const u16 *levels;  // [BANDS][n]
  i64 n;
  const int *weights;  // [COMPONENTS][BANDS], in shared memory
  double min_norm;
  const double *low;
  const double *gain;
  int radix;

  __device__ u64 key(i64 i) const {
    i64 p[COMPONENTS];
    for (int d = 0; d < COMPONENTS; ++d) p[d] = 0;
    for (int b = 0; b < BANDS; ++b) {
      int level = levels[b * n + i];
      for (int d = 0; d < COMPONENTS; ++d) p[d] += (i64)weights[d * BANDS + b] * level;
    }
    double norm2 = 0.0;
    for (int d = 0; d < COMPONENTS; ++d) norm2 = __dadd_rn(norm2, __dmul_rn((double)p[d], (double)p[d]));
    double norm = __dsqrt_rn(norm2);
    if (!(norm > min_norm)) return NO_KEY;
    u64 key = 0;
    for (int d = 0; d < COMPONENTS; ++d) {
      double t = __dmul_rn(__dadd_rn(__ddiv_rn((double)p[d], norm), -low[d]), gain[d]);
      t = fmin(fmax(t, 0.0), (double)(radix - 1));
      key = key * (u64)radix + (u64)rint(t);
    }
    return key;
  }
};

// Each block takes one contiguous share of n, so that neighbouring pixels, which are alike, meet in its slots.
__device__ inline i64 share_of(i64 n, i64 block) {
  return n / gridDim.x * block + n % gridDim.x * block / gridDim.x;
}
__device__ inline i64 share_start(i64 n) { return share_of(n, blockIdx.x); }
__device__ inline i64 share_stop(i64 n) { return share_of(n, (i64)blockIdx.x + 1); }

__device__ inline void load_weights(int *shared, const int *weights) {
  for (int i = threadIdx.x; i < WEIGHTS; i += blockDim.x) shared[i] = weights[i];
  __syncthreads();
}

template <typename T>
__device__ void update(const Tables<T> &tables, const u64 *keys, const i64 *counts, i64 n) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    tables.count(keys[i], counts[i]);
}

template <typename T>
__device__ void estimate(const T *table, int depth, i64 width, const u64 *seeds, const u64 *keys, i64 n, i64 *found) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    i64 rows[MAX_DEPTH];
    u64 mixed = mix(keys[i]);
    for (int r = 0; r < depth; ++r) {
      u32 t = place(mixed, seeds + 3 * r, (u64)width);
      i64 value = (i64)table[(i64)r * width + (t >> 1)];
      if (t & 1) value = (i64)(0 - (u64)value);
      int j = r;
      for (; j > 0 && rows[j - 1] > value; --j) rows[j] = rows[j - 1];
      rows[j] = value;
    }
    i64 below = rows[(depth - 1) / 2], above = rows[depth / 2];
    i64 middle = (below & above) + ((below ^ above) >> 1);
    found[i] = middle + ((below ^ above) & middle & 1);
  }
}

#define KERNELS_OF(T, NAME)                                                                                           \
  extern "C" __global__ void sketch_update_##NAME(T *table, int depth, i64 width, const u64 *seeds, const int *shifts, \
                                                  const u64 *keys, const i64 *counts, i64 n) {                         \
    update(Tables<T>{table, shifts, 1, nullptr, 0, seeds, depth, width}, keys, counts, n);                            \
  }                                                                                                                   \
  extern "C" __global__ void sketch_estimate_##NAME(const T *table, int depth, i64 width, const u64 *seeds,           \
                                                    const u64 *keys, i64 n, i64 *found) {                             \
    estimate(table, depth, width, seeds, keys, n, found);                                                             \
  }                                                                                                                   \
  extern "C" __global__ void count_keys_##NAME(T *sketches, const int *shifts, int levels, T *dense, int dense_shift, \
                                               const u64 *seeds, int depth, i64 width, const u64 *keys, i64 n) {      \
    __shared__ u64 slot_keys[SLOTS];                                                                                  \
    __shared__ u32 slot_counts[SLOTS];                                                                                \
    Tables<T> tables{sketches, shifts, levels, dense, dense_shift, seeds, depth, width};                              \
    Slots slots{slot_keys, slot_counts};                                                                              \
    slots.clear();                                                                                                    \
    for (i64 i = share_start(n) + threadIdx.x; i < share_stop(n); i += blockDim.x) slots.take(keys[i], tables);       \
    slots.flush(tables);                                                                                              \
  }                                                                                                                   \
  extern "C" __global__ void count_pixels_##NAME(                                                                     \
      T *sketches, const int *shifts, int levels, T *dense, int dense_shift, const u64 *seeds, int depth, i64 width,  \
      const u16 *pixels, i64 n, const int *projection, double min_norm, const double *low,                 \
      const double *gain, int radix) {                                                                                \
    __shared__ u64 slot_keys[SLOTS];                                                                                  \
    __shared__ u32 slot_counts[SLOTS];                                                                                \
    __shared__ int weights[WEIGHTS];                                                                              \
    Tables<T> tables{sketches, shifts, levels, dense, dense_shift, seeds, depth, width};                              \
    Slots slots{slot_keys, slot_counts};                                                                              \
    Quantiser quantiser{pixels, n, weights, min_norm, low, gain, radix};                                       \
    load_weights(weights, projection);                                                                         \
    slots.clear();                                                                                                    \
    for (i64 i = share_start(n) + threadIdx.x; i < share_stop(n); i += blockDim.x)                                    \
      slots.take(quantiser.key(i), tables);                                                                           \
    slots.flush(tables);                                                                                              \
  }

KERNELS_OF(int, int32)
KERNELS_OF(i64, int64)

extern "C" __global__ void pixel_keys(const u16 *pixels, i64 n, const int *projection, double min_norm,
                                      const double *low, const double *gain, int radix, u64 *keys) {
  __shared__ int weights[WEIGHTS];
  Quantiser quantiser{pixels, n, weights, min_norm, low, gain, radix};
  load_weights(weights, projection);
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    keys[i] = quantiser.key(i);
}
