// The sketch and the quantiser on a GPU. The definitions are sketch_numpy.py and pixels_numpy.py; every result equals
// theirs bit for bit: counters are integers, and the doubles are rounded operation by operation (no fused multiply-add).
//
// One source for NVRTC (cupy_.py), for nvcc (a check of its syntax) and for g++ (tests/cairn/emulate_cuda.h).
// Compile with -DCOMPONENTS=D -DBANDS=B, the quantiser's components and bands. Blocks are whole warps.

typedef unsigned long long u64;
typedef long long i64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#ifndef COMPONENTS
#define COMPONENTS 8
#endif
#ifndef BANDS
#define BANDS 35
#endif
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(T, NAME) extern __shared__ __align__(16) T NAME[]
#endif

static const int THREADS = 512;       // a block has at most so many, and two of them fit a multiprocessor's registers
static const int ROW_THREADS = 1024;  // of count_rows, of which one block fills a multiprocessor's shared memory
static const int MAX_DEPTH = 64;
static const int PADDED = (COMPONENTS + 3) / 4 * 4;  // a band's weights come in loads of 16 bytes
static const int WEIGHTS = BANDS * PADDED;
static const int PIXELS = COMPONENTS <= 16 ? 2 : 1;  // a thread projects at once; more do not fit its registers
static const int INTENSITY_BITS = 2;
static const int INTENSITY_FIRST = 1023 << INTENSITY_BITS;
static const int INTENSITY_BINS = 84 << INTENSITY_BITS;
static const int UNIT_BINS = 512;
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

// Each block takes one contiguous share of n, so that neighbouring pixels, which are alike, meet in it. Even, so that
// keys can be read in pairs.
__device__ inline i64 share_of(i64 n, i64 share, i64 shares) {
  if (share == shares) return n;
  return (n / shares * share + n % shares * share / shares) & ~1ll;
}
__device__ inline i64 share_start(i64 n) { return share_of(n, blockIdx.x, gridDim.x); }
__device__ inline i64 share_stop(i64 n) { return share_of(n, (i64)blockIdx.x + 1, gridDim.x); }

// Of the warp's lanes that hold the same value: how many, in the first of them, and 0 in the others.
__device__ inline u32 once(u32 lanes, u64 value) {
  u32 same = __match_any_sync(lanes, value);
  return (u32)__ffs((int)same) - 1 == (threadIdx.x & 31) ? (u32)__popc(same) : 0;
}

// Take the keys of [start, stop), start even, all threads of the block together: 16 bytes a load, equal ones of a pair
// and of a warp at once. take(key, times)
template <typename Take>
__device__ void each_key(const u64 *keys, i64 start, i64 stop, Take take) {
  for (i64 base = start; base < stop; base += 2 * blockDim.x) {
    i64 i = base + 2 * threadIdx.x;
    ulonglong2 pair = {NO_KEY, NO_KEY};
    if (i + 1 < stop)
      pair = *(const ulonglong2 *)(keys + i);
    else if (i < stop)
      pair.x = keys[i];
    bool twice = pair.x == pair.y;
    u32 times = once(0xFFFFFFFF, twice ? NO_KEY : pair.y);
    if (times && !twice && pair.y != NO_KEY) take(pair.y, times);
    // Lanes with one key and lanes with a pair of it are told apart by the lowest bit; keys have at most 63 bits.
    times = once(0xFFFFFFFF, pair.x << 1 | (twice ? 1 : 0));
    if (times && pair.x != NO_KEY) take(pair.x, twice ? 2 * times : times);
  }
}

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

// Equal keys are added up in slots before they reach a table: 2^bits keys, and behind them their counts. A slot belongs
// to the key that comes first, which is mostly a frequent one, until all are emptied.
struct Slots {
  u64 *keys;
  u32 *counts;
  int bits, tries;  // a key may have the first free one of so many, a power of two, side by side

  __device__ Slots(u64 *memory, int bits, int tries)
      : keys(memory), counts((u32 *)(memory + (1ll << bits))), bits(bits), tries(tries) {}
  __device__ bool take(u64 key, u32 times) const {
    u64 slot = (key * 0x9E3779B97F4A7C15ull) >> (64 - bits) & ~(u64)(tries - 1);
    for (u64 stop = slot + tries; slot < stop; ++slot) {
      u64 held = keys[slot];
      if (held == NO_KEY) held = atomicCAS(keys + slot, NO_KEY, key);
      if (held != NO_KEY && held != key) continue;
      atomicAdd(counts + slot, times);
      return true;
    }
    return false;
  }
};

// A block's keys meet in slots of its shared memory; what finds none, and what they hold after every so many keys (so
// that they follow the image), goes on to all blocks' slots in the L2 cache, a sector's four at a time; what finds none
// there either goes to the tables. So a key of an image costs the tables' additions about once, and not once a pixel.
template <typename T>
struct Funnel {
  Slots near, far;
  bool has_far;
  const Tables<T> &tables;

  __device__ Funnel(u64 *shared, int near_bits, u64 *far, int far_bits, const Tables<T> &tables)
      : near(shared, near_bits, 1), far(far, far_bits, 4), has_far(far), tables(tables) {}
  __device__ i64 chunk() const { return 64ll << near.bits; }
  __device__ void clear() const {
    __syncthreads();
    for (int i = threadIdx.x; i < 1 << near.bits; i += blockDim.x) near.keys[i] = NO_KEY, near.counts[i] = 0;
    __syncthreads();
  }
  __device__ void take(u64 key, u32 times) const {
    if (!near.take(key, times)) pass(key, times);
  }
  __device__ void pass(u64 key, u32 times) const {
    if (!has_far || !far.take(key, times)) tables.count(key, times);
  }
  __device__ void flush() const {
    __syncthreads();
    for (int i = threadIdx.x; i < 1 << near.bits; i += blockDim.x)
      if (near.counts[i]) pass(near.keys[i], near.counts[i]);
  }
};

// Project pixels; pixels_numpy.scores.
struct Projection {
  const u16 *levels;  // [BANDS][n]
  i64 n;
  const int *weights;  // [BANDS][PADDED], in shared memory
  u32 narrow;          // no sum of levels up to this one can leave an int32

  // Pixels i, i + step, … of a thread, those under stop: use(which, scores int or i64[COMPONENTS])
  template <typename Use>
  __device__ void each(i64 i, i64 step, i64 stop, Use use) const {
    u32 sums[PIXELS][COMPONENTS], seen = 0;  // unsigned: they may wrap, and are then not used
    for (int j = 0; j < PIXELS; ++j)
      for (int d = 0; d < COMPONENTS; ++d) sums[j][d] = 0;
#pragma unroll 5
    for (int b = 0; b < BANDS; ++b) {
      int4 w[PADDED / 4];
#pragma unroll
      for (int q = 0; q < PADDED / 4; ++q) w[q] = ((const int4 *)(weights + b * PADDED))[q];
#pragma unroll
      for (int j = 0; j < PIXELS; ++j) {
        i64 at = i + j * step;
        u32 level = at < stop ? levels[b * n + at] : 0;
        seen |= level;  // not under the maximum, and under twice it
#pragma unroll
        for (int d = 0; d < COMPONENTS; ++d) {
          int4 four = w[d / 4];
          sums[j][d] += (u32)(d % 4 == 0 ? four.x : d % 4 == 1 ? four.y : d % 4 == 2 ? four.z : four.w) * level;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < PIXELS; ++j)
      if (i + j * step < stop && seen <= narrow) use(j, (const int *)sums[j]);
    if (seen <= narrow) return;
    for (int j = 0; j < PIXELS && i + j * step < stop; ++j) {
      i64 whole[COMPONENTS];
      for (int d = 0; d < COMPONENTS; ++d) whole[d] = 0;
      for (int b = 0; b < BANDS; ++b)
        for (int d = 0; d < COMPONENTS; ++d)
          whole[d] += (i64)weights[b * PADDED + d] * levels[b * n + i + j * step];
      use(j, (const i64 *)whole);
    }
  }
};

template <typename S>
__device__ inline double squared_norm(const S *p) {
  double total = 0.0;
  for (int d = 0; d < COMPONENTS; ++d) total = __dadd_rn(total, __dmul_rn((double)p[d], (double)p[d]));
  return total;
}

// How a pixel becomes a key; pixels_numpy.keys.
struct Quantiser {
  double min_norm;
  const double *low;
  const double *gain;
  int radix;

  template <typename S>
  __device__ u64 key(const S *p) const {
    double norm = __dsqrt_rn(squared_norm(p));
    if (!(norm > min_norm)) return NO_KEY;
    u64 key = 0;
    for (int d = 0; d < COMPONENTS; ++d) {
      double t = __dmul_rn(__dadd_rn(__ddiv_rn((double)p[d], norm), -low[d]), gain[d]);
      t = fmin(fmax(t, 0.0), (double)(radix - 1));
      key = key * (u64)radix + (u32)rint(t);
    }
    return key;
  }
};

// The weights' transpose in shared memory: a band's lie side by side.
__device__ inline void load_weights(int *shared, const int *weights) {
  for (int i = threadIdx.x; i < BANDS * COMPONENTS; i += blockDim.x)
    shared[i % BANDS * PADDED + i / BANDS] = weights[i];
  __syncthreads();
}

struct IntoKeys {  // no generic lambda: NVRTC 12 takes one for a function of the host's
  const Quantiser &quantiser;
  u64 *found;
  template <typename S>
  __device__ void operator()(int j, const S *scores) const {
    found[j] = quantiser.key(scores);
  }
};

// Take the pixels of [start, stop), all threads of the block together: take(i, key), with NO_KEY from stop on.
template <typename Take>
__device__ void each_pixel(const Projection &projection, const Quantiser &quantiser, i64 start, i64 stop, Take take) {
  for (i64 base = start; base < stop; base += (i64)PIXELS * blockDim.x) {
    u64 found[PIXELS];
    for (int j = 0; j < PIXELS; ++j) found[j] = NO_KEY;
    projection.each(base + threadIdx.x, blockDim.x, stop, IntoKeys{quantiser, found});
    for (int j = 0; j < PIXELS; ++j) take(base + threadIdx.x + (i64)j * blockDim.x, found[j]);
  }
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

template <typename T>
__device__ void count_keys(const Tables<T> &tables, int near_bits, u64 *far, int far_bits, const u64 *keys, i64 n) {
  DYNAMIC_SHARED(u64, shared);
  Funnel<T> funnel(shared, near_bits, far, far_bits, tables);
  for (i64 start = share_start(n), stop = share_stop(n); start < stop; start += funnel.chunk()) {
    funnel.clear();
    each_key(keys, start, start + funnel.chunk() < stop ? start + funnel.chunk() : stop,
             [&](u64 key, u32 times) { funnel.take(key, times); });
    funnel.flush();
  }
}

// Add what the slots of all blocks hold to the tables, and empty them.
template <typename T>
__device__ void flush_slots(const Tables<T> &tables, u64 *far, int far_bits) {
  Slots slots(far, far_bits, 4);
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < 1ll << far_bits; i += (i64)gridDim.x * blockDim.x) {
    if (slots.counts[i]) tables.count(slots.keys[i], slots.counts[i]);
    slots.keys[i] = NO_KEY, slots.counts[i] = 0;
  }
}

// As many rows as fit are counted in the block's shared memory: no two blocks meet before the end. A block takes one
// share of the keys into `rows` rows of one level; gridDim.x is a multiple of the groups of rows.
template <typename T>
__device__ void count_rows(const Tables<T> &tables, int rows, const u64 *keys, i64 n) {
  DYNAMIC_SHARED(int, counters);
  int groups = (tables.depth + rows - 1) / rows;
  int group = blockIdx.x % (groups * tables.levels), level = group / groups;
  int first = group % groups * rows, mine = tables.depth - first < rows ? tables.depth - first : rows;
  i64 share = blockIdx.x / (groups * tables.levels), shares = gridDim.x / (groups * tables.levels);
  int width = (int)tables.width, shift = tables.shifts[level];
  for (int i = threadIdx.x; i < mine * width; i += blockDim.x) counters[i] = 0;
  __syncthreads();
  each_key(keys, share_of(n, share, shares), share_of(n, share + 1, shares), [&](u64 key, u32 times) {
    u64 mixed = mix(key >> shift);
    for (int r = 0; r < mine; ++r) {
      u32 t = place(mixed, tables.seeds + 3 * (first + r), (u64)width);
      atomicAdd((u32 *)counters + r * width + (t >> 1), (t & 1) ? 0 - times : times);
    }
  });
  __syncthreads();
  T *into = tables.sketches + ((i64)level * tables.depth + first) * tables.width;
  for (int i = threadIdx.x; i < mine * width; i += blockDim.x)
    if (counters[i]) add(into + i, counters[i]);
}

template <typename T>
__device__ void count_pixels(const Tables<T> &tables, int near_bits, u64 *far, int far_bits,
                             const Projection &projection, const Quantiser &quantiser) {
  DYNAMIC_SHARED(u64, shared);
  Funnel<T> funnel(shared, near_bits, far, far_bits, tables);
  i64 start = share_start(projection.n), stop = share_stop(projection.n);
  for (; start < stop; start += funnel.chunk()) {
    funnel.clear();
    each_pixel(projection, quantiser, start, start + funnel.chunk() < stop ? start + funnel.chunk() : stop,
               [&](i64, u64 key) {
                 u32 times = once(0xFFFFFFFF, key);
                 if (times && key != NO_KEY) funnel.take(key, times);
               });
    funnel.flush();
  }
}

#define TABLES(T) T *sketches, const int *shifts, int levels, T *dense, int dense_shift, const u64 *seeds, int depth, i64 width
#define SLOTS int near_bits, u64 *far, int far_bits
#define PROJECTED const u16 *pixels, i64 n, const int *projected, u32 narrow
#define QUANTISED PROJECTED, double min_norm, const double *low, const double *gain, int radix
#define KERNELS_OF(T, NAME)                                                                                           \
  extern "C" __global__ void sketch_update_##NAME(TABLES(T), const u64 *keys, const i64 *counts, i64 n) {             \
    update(Tables<T>{sketches, shifts, levels, dense, dense_shift, seeds, depth, width}, keys, counts, n);            \
  }                                                                                                                   \
  extern "C" __global__ void sketch_estimate_##NAME(const T *table, int depth, i64 width, const u64 *seeds,           \
                                                    const u64 *keys, i64 n, i64 *found) {                             \
    estimate(table, depth, width, seeds, keys, n, found);                                                             \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                            \
      count_keys_##NAME(TABLES(T), SLOTS, const u64 *keys, i64 n) {                                                   \
    Tables<T> tables{sketches, shifts, levels, dense, dense_shift, seeds, depth, width};                              \
    count_keys(tables, near_bits, far, far_bits, keys, n);                                                            \
  }                                                                                                                   \
  extern "C" __global__ void flush_slots_##NAME(TABLES(T), u64 *far, int far_bits) {                                  \
    flush_slots(Tables<T>{sketches, shifts, levels, dense, dense_shift, seeds, depth, width}, far, far_bits);         \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)                                                        \
      count_rows_##NAME(TABLES(T), int rows, const u64 *keys, i64 n) {                                                \
    count_rows(Tables<T>{sketches, shifts, levels, dense, dense_shift, seeds, depth, width}, rows, keys, n);          \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) count_pixels_##NAME(TABLES(T), SLOTS, QUANTISED) {         \
    __shared__ __align__(16) int weights[WEIGHTS];                                                                    \
    load_weights(weights, projected);                                                                                 \
    Tables<T> tables{sketches, shifts, levels, dense, dense_shift, seeds, depth, width};                              \
    count_pixels(tables, near_bits, far, far_bits, Projection{pixels, n, weights, narrow},                            \
                 Quantiser{min_norm, low, gain, radix});                                                              \
  }

KERNELS_OF(int, int32)
KERNELS_OF(i64, int64)

__device__ inline void write_keys(const Projection &projection, const Quantiser &quantiser, u64 *keys) {
  i64 stop = share_stop(projection.n);
  each_pixel(projection, quantiser, share_start(projection.n), stop, [&](i64 i, u64 key) {
    if (i < stop) keys[i] = key;
  });
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) pixel_keys(QUANTISED, u64 *keys) {
  __shared__ __align__(16) int weights[WEIGHTS];
  load_weights(weights, projected);
  write_keys(Projection{pixels, n, weights, narrow}, Quantiser{min_norm, low, gain, radix}, keys);
}

// pixels_numpy.unit_histogram into u32[COMPONENTS][INTENSITY_BINS][UNIT_BINS]; n at most 2^31 a call.
struct IntoUnits {
  u32 *into;
  template <typename S>
  __device__ void operator()(int, const S *p) const {
    double norm2 = squared_norm(p), norm = __dsqrt_rn(norm2);
    if (!(norm2 > 0.0)) return;
    u32 bin = (u32)((u64)__double_as_longlong(norm2) >> (52 - INTENSITY_BITS)) - INTENSITY_FIRST;
    for (int d = 0; d < COMPONENTS; ++d) {
      double unit = __dmul_rn(__dadd_rn(__ddiv_rn((double)p[d], norm), 1.0), UNIT_BINS / 2);
      u32 cell = (d * INTENSITY_BINS + bin) * UNIT_BINS + (u32)fmin(unit, UNIT_BINS - 0.5);
      u32 times = once(__activemask(), cell);  // glass is one cell, and often
      if (times) atomicAdd(into + cell, times);
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) unit_histogram(PROJECTED, u32 *into) {
  __shared__ __align__(16) int weights[WEIGHTS];
  load_weights(weights, projected);
  Projection projection{pixels, n, weights, narrow};
  i64 stop = share_stop(n), step = blockDim.x;
  for (i64 base = share_start(n); base < stop; base += PIXELS * step)
    projection.each(base + threadIdx.x, step, stop, IntoUnits{into});
}

// pixels_numpy.moments: products of all pairs of rows, the bands and one of ones, into the upper triangle of
// u64[BANDS + 1][BANDS + 1]. A thread keeps its pairs' sums in registers and reads the pixels from shared memory.
static const int MOMENT_THREADS = 256;
static const int ROWS = BANDS + 1;
static const int PAIRS = ROWS * (ROWS + 1) / 2;
static const int EACH = (PAIRS + MOMENT_THREADS - 1) / MOMENT_THREADS;
static const int TILE = 128;  // pixels; rows are 65 words apart, so that no two lie in the same banks

extern "C" __global__ void __launch_bounds__(MOMENT_THREADS) moments(const u16 *pixels, i64 n, u64 *total) {
  __shared__ u16 tile[ROWS][TILE + 2];
  u64 sums[EACH];
  int first[EACH], second[EACH];
  for (int e = 0; e < EACH; ++e) {
    int a = 0, b = threadIdx.x + e * MOMENT_THREADS;
    for (; a < ROWS && b >= ROWS - a; ++a) b -= ROWS - a;
    first[e] = a, second[e] = a + b, sums[e] = 0;
  }
  for (i64 base = share_start(n); base < share_stop(n); base += TILE) {
    __syncthreads();
    for (int k = threadIdx.x; k < ROWS * TILE; k += blockDim.x) {
      int row = k / TILE;
      i64 i = base + k % TILE;
      tile[row][k % TILE] = i < share_stop(n) ? (row < BANDS ? pixels[row * n + i] : 1) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int e = 0; e < EACH; ++e)
      if (first[e] < ROWS)
        for (int x = 0; x < TILE; ++x) sums[e] += (u32)tile[first[e]][x] * (u32)tile[second[e]][x];
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e)
    if (first[e] < ROWS && sums[e]) atomicAdd(total + first[e] * ROWS + second[e], sums[e]);
}

// pixels_numpy.profile into u64[256][gridDim.y]: blocks of y sum band y by cluster, those of the last y count pixels.
extern "C" __global__ void profile(const u16 *pixels, i64 n, const u8 *clusters, u64 *sums) {
  __shared__ u32 part[256];
  bool counting = blockIdx.y + 1 == gridDim.y;
  i64 chunk = 1 << 16;  // of levels under 2^16 sum to under 2^32
  for (i64 start = share_start(n), stop = share_stop(n); start < stop; start += chunk) {
    for (int k = threadIdx.x; k < 256; k += blockDim.x) part[k] = 0;
    __syncthreads();
    for (i64 i = start + threadIdx.x; i < start + chunk && i < stop; i += blockDim.x)
      atomicAdd(part + clusters[i], counting ? 1u : (u32)pixels[blockIdx.y * n + i]);
    __syncthreads();
    for (int k = threadIdx.x; k < 256; k += blockDim.x)
      if (part[k]) atomicAdd(sums + k * gridDim.y + blockIdx.y, (u64)part[k]);
    __syncthreads();
  }
}

// pixels_numpy.lookup by bisection: the list is small and stays in the caches.
extern "C" __global__ void lookup(const u64 *keys, i64 n, const u64 *listed, i64 size, i64 *found) {
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
    i64 low = 0, high = size;
    while (low < high) {
      i64 middle = (low + high) / 2;
      if (listed[middle] < keys[i])
        low = middle + 1;
      else
        high = middle;
    }
    found[i] = low < size && listed[low] == keys[i] ? low : -1;
  }
}
