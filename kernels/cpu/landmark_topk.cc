// How it works. The landmarks are cut into blocks of rows; each task scans one block in strips of
// 16 rows against all queries and keeps the k best of each query in a heap of its own; the heaps
// are merged at the end by a total order (score, then index), so the cut does not matter.
//
// One pass over a strip computes rows x queries dot products while the strip lies in the L1 cache:
//  - AMX, bf16 landmarks: A = 16 rows x 32 dimensions straight from memory, B = queries. A query in
//  float32 is split into
//    two bf16 numbers, q = hi + lo, and both products go into the same float32 tile, so the query
//    loses nothing above 2^-17 of its value.
//  - elsewhere: float32 multiply-adds on vectors of 16, four queries at a time.

#include "kernels/cpu/landmark_topk.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mneme {
namespace {

constexpr int64_t kStripRows = 64;       // rows of four tiles
constexpr int64_t kGroupQueries = 16;    // columns of a tile
constexpr int64_t kBlockRowsMin = 8192;  // rows of a task, at least
constexpr int64_t kBlocksMax = 256;      // tasks of a scan, at most: bounds the memory of the heaps
constexpr float kNegInf = -std::numeric_limits<float>::infinity();

struct Candidate {
  float score;
  int64_t index;
};

// True when `a` ranks above `b`.
bool Better(const Candidate& a, const Candidate& b) {
  return a.score != b.score ? a.score > b.score : a.index > b.index;
}

// The k best candidates of one query; a heap with the worst in front.
class TopK {
 public:
  explicit TopK(int64_t k) : k_(static_cast<size_t>(k)) {}

  // Scores below this cannot enter.
  float threshold() const { return heap_.size() < k_ ? kNegInf : heap_.front().score; }

  void Offer(const Candidate& candidate) {
    if (heap_.size() < k_) {
      heap_.push_back(candidate);
      std::push_heap(heap_.begin(), heap_.end(), Better);
    } else if (Better(candidate, heap_.front())) {
      std::pop_heap(heap_.begin(), heap_.end(), Better);
      heap_.back() = candidate;
      std::push_heap(heap_.begin(), heap_.end(), Better);
    }
  }

  const std::vector<Candidate>& candidates() const { return heap_; }

 private:
  size_t k_;
  std::vector<Candidate> heap_;
};

// Queries as the kernels read them, shared by all tasks.
struct PackedQueries {
  int64_t padded = 0;       // n_queries rounded up to whole groups
  std::vector<float> rows;  // [padded, dim], for the vector kernels
  std::vector<Bf16> tiles;  // [groups][dim / 32][hi, lo][16 pairs][16 queries][2], for AMX
};

// Whatever the number of queries: tiles round otherwise than vectors, and a question's scores must
// not depend on who shares its scan. Alone it takes 0.8 to 0.9 times what vectors take where memory
// is the limit (1.1 to 1.2 times with 1024 dimensions); from two on tiles are faster.
bool UsesAmx(const LandmarkTopKParams& params, CpuIsa isa) {
  return isa == CpuIsa::kAmx && params.dtype == DType::kBf16 && params.dim % 32 == 0;
}

PackedQueries Pack(const LandmarkTopKParams& params, CpuIsa isa) {
  PackedQueries packed;
  const int64_t dim = params.dim;
  packed.padded = (params.n_queries + kGroupQueries - 1) / kGroupQueries * kGroupQueries;
  if (!UsesAmx(params, isa)) {
    packed.rows.assign(static_cast<size_t>(packed.padded * dim), 0.0f);
    std::memcpy(packed.rows.data(), params.queries,
                static_cast<size_t>(params.n_queries * dim) * sizeof(float));
    return packed;
  }
  packed.tiles.assign(static_cast<size_t>(packed.padded * dim * 2), 0);
  for (int64_t q = 0; q < params.n_queries; ++q) {
    for (int64_t d = 0; d < dim; ++d) {
      const float value = params.queries[q * dim + d];
      const Bf16 hi = FloatToBf16(value);
      const Bf16 lo = FloatToBf16(value - Bf16ToFloat(hi));
      const int64_t tile = (q / kGroupQueries * (dim / 32) + d / 32) * 2;
      const int64_t at = (d % 32 / 2 * kGroupQueries + q % kGroupQueries) * 2 + d % 2;
      packed.tiles[static_cast<size_t>(tile * 512 + at)] = hi;
      packed.tiles[static_cast<size_t>((tile + 1) * 512 + at)] = lo;
    }
  }
  return packed;
}

// Sixteen floats; the compiler lowers it to what the enclosing function's target has.
typedef float Vec16 __attribute__((vector_size(64)));
typedef uint32_t Uint16x32 __attribute__((vector_size(64)));
typedef uint16_t Uint16x16 __attribute__((vector_size(32)));

__attribute__((always_inline)) inline void LoadRow(const float* row, Vec16* out) {
  std::memcpy(out, row, sizeof(*out));
}

__attribute__((always_inline)) inline void LoadRow(const Bf16* row, Vec16* out) {
  Uint16x16 half;
  std::memcpy(&half, row, sizeof(half));
  const Uint16x32 bits = __builtin_convertvector(half, Uint16x32) << 16;
  std::memcpy(out, &bits, sizeof(*out));
}

__attribute__((always_inline)) inline float ToFloat(float value) { return value; }
__attribute__((always_inline)) inline float ToFloat(Bf16 value) { return Bf16ToFloat(value); }

typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec4 __attribute__((vector_size(16)));

__attribute__((always_inline)) inline float Sum(const Vec16& v) {
  const Vec8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const Vec4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
                    __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Dot products of one row with kTogether queries. Each query has sums of its own, so the result
// does not depend on kTogether.
template <int kTogether, typename T>
__attribute__((always_inline)) inline void ScoreRow(const T* row, const float* queries, int64_t dim,
                                                    float* scores) {
  Vec16 sum[kTogether] = {};
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    Vec16 x;
    LoadRow(row + d, &x);
    for (int j = 0; j < kTogether; ++j) {
      Vec16 y;
      LoadRow(queries + j * dim + d, &y);
      sum[j] += x * y;
    }
  }
  for (int j = 0; j < kTogether; ++j) {
    float total = Sum(sum[j]);
    for (int64_t tail = d; tail < dim; ++tail)
      total += ToFloat(row[tail]) * queries[j * dim + tail];
    scores[j] = total;
  }
}

// scores[r * padded + q] for `rows` rows of one strip.
template <typename T>
__attribute__((always_inline)) inline void ScoreStrip(const T* strip, int64_t rows, int64_t dim,
                                                      const PackedQueries& queries,
                                                      int64_t n_queries, float* scores) {
  constexpr int64_t kAheadBytes =
      8192;  // of the row in hand: enough to cover the latency of memory
  const int64_t row_bytes = dim * static_cast<int64_t>(sizeof(T));
  for (int64_t r = 0; r < rows; ++r) {
    const char* ahead = reinterpret_cast<const char*>(strip + r * dim) + kAheadBytes;
    for (int64_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(ahead + at);
    int64_t q = 0;
    for (; q + 4 <= n_queries; q += 4) {
      ScoreRow<4>(strip + r * dim, queries.rows.data() + q * dim, dim,
                  scores + r * queries.padded + q);
    }
    for (; q < n_queries; ++q) {
      ScoreRow<1>(strip + r * dim, queries.rows.data() + q * dim, dim,
                  scores + r * queries.padded + q);
    }
  }
}

template <typename T>
void ScoreStripPortable(const T* strip, int64_t rows, int64_t dim, const PackedQueries& queries,
                        int64_t n_queries, float* scores) {
  ScoreStrip(strip, rows, dim, queries, n_queries, scores);
}

#if defined(__x86_64__)
template <typename T>
__attribute__((target("avx2,fma"))) void ScoreStripAvx2(const T* strip, int64_t rows, int64_t dim,
                                                        const PackedQueries& queries,
                                                        int64_t n_queries, float* scores) {
  ScoreStrip(strip, rows, dim, queries, n_queries, scores);
}

// clang has no such word for its target attribute, and takes whole registers for vector types
// anyway.
#if defined(__clang__)
#define MNEME_AVX512_TARGET "avx512f,avx512bw,avx512dq,avx512vl,fma"
#else
#define MNEME_AVX512_TARGET "avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512"
#endif
template <typename T>
__attribute__((target(MNEME_AVX512_TARGET))) void ScoreStripAvx512(const T* strip, int64_t rows,
                                                                   int64_t dim,
                                                                   const PackedQueries& queries,
                                                                   int64_t n_queries,
                                                                   float* scores) {
  ScoreStrip(strip, rows, dim, queries, n_queries, scores);
}

// Palette 1: eight tiles of 16 rows x 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four tiles of rows against each group of queries. Tiles 0, 1: landmarks; 2, 3: queries, hi and
// lo; 4 .. 7: scores. Meanwhile the next strip is fetched, spread over the steps: a tile load by
// itself would stall on memory row by row.
__attribute__((target("amx-tile,amx-bf16,avx512f"))) void ScoreStripAmx(
    const Bf16* strip, int64_t dim, const PackedQueries& queries, float* scores) {
  const int64_t steps = dim / 32;
  const size_t row_bytes = static_cast<size_t>(dim) * sizeof(Bf16);
  const size_t score_bytes = static_cast<size_t>(queries.padded) * sizeof(float);
  const int64_t tile_scores = 16 * queries.padded;
  const Bf16* query = queries.tiles.data();
  const char* ahead = reinterpret_cast<const char*>(strip + kStripRows * dim);
  asm volatile("" ::: "memory");  // tile loads do not tell the compiler that they read memory
  for (int64_t g = 0; g < queries.padded; g += kGroupQueries) {
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t s = 0; s < steps; ++s, query += 1024) {
      const Bf16* rows = strip + s * 32;
      const auto fetch = [&] {  // an eighth of this step's share
        if (g != 0) return;
        for (int line = 0; line < 8; ++line, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T0);
      };
      _tile_loadd(2, query, 64);
      _tile_loadd(0, rows, row_bytes);
      fetch();
      _tile_dpbf16ps(4, 0, 2);
      _tile_loadd(1, rows + 16 * dim, row_bytes);
      fetch();
      _tile_dpbf16ps(5, 1, 2);
      _tile_loadd(3, query + 512, 64);
      fetch();
      _tile_dpbf16ps(4, 0, 3);
      fetch();
      _tile_dpbf16ps(5, 1, 3);
      _tile_loadd(0, rows + 32 * dim, row_bytes);
      fetch();
      _tile_dpbf16ps(6, 0, 2);
      _tile_loadd(1, rows + 48 * dim, row_bytes);
      fetch();
      _tile_dpbf16ps(7, 1, 2);
      fetch();
      _tile_dpbf16ps(6, 0, 3);
      fetch();
      _tile_dpbf16ps(7, 1, 3);
    }
    _tile_stored(4, scores + g, score_bytes);
    _tile_stored(5, scores + tile_scores + g, score_bytes);
    _tile_stored(6, scores + 2 * tile_scores + g, score_bytes);
    _tile_stored(7, scores + 3 * tile_scores + g, score_bytes);
  }
}

__attribute__((target("avx512f"))) uint32_t AboveThresholdAvx512(const float* scores,
                                                                 const float* thresholds) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), _mm512_loadu_ps(thresholds), _CMP_GE_OQ);
}

__attribute__((target("amx-tile"))) void ConfigureTiles() {
  static const TileConfig config;
  _tile_loadconfig(&config);
}

__attribute__((target("amx-tile"))) void ReleaseTiles() { _tile_release(); }
#endif

// Bit q: scores[q] >= thresholds[q], for one group of 16. A NaN is above nothing.
uint32_t AboveThreshold(CpuIsa isa, const float* scores, const float* thresholds) {
#if defined(__x86_64__)
  if (isa >= CpuIsa::kAvx512) return AboveThresholdAvx512(scores, thresholds);
#endif
  uint32_t mask = 0;
  for (int q = 0; q < kGroupQueries; ++q)
    mask |= static_cast<uint32_t>(scores[q] >= thresholds[q]) << q;
  return mask;
}

template <typename T>
void ScoreStripVector(CpuIsa isa, const T* strip, int64_t rows, int64_t dim,
                      const PackedQueries& queries, int64_t n_queries, float* scores) {
#if defined(__x86_64__)
  if (isa >= CpuIsa::kAvx512) return ScoreStripAvx512(strip, rows, dim, queries, n_queries, scores);
  if (isa == CpuIsa::kAvx2) return ScoreStripAvx2(strip, rows, dim, queries, n_queries, scores);
#endif
  ScoreStripPortable(strip, rows, dim, queries, n_queries, scores);
}

// Scans rows [begin, end) of the concatenated slabs into one heap per query.
class BlockScan {
 public:
  BlockScan(const LandmarkTopKParams& params, const PackedQueries& queries, CpuIsa isa)
      : params_(params), queries_(queries), isa_(isa), amx_(UsesAmx(params, isa)) {}

  void Run(const std::vector<int64_t>& slab_begin, int64_t begin, int64_t end,
           std::vector<TopK>* best) {
    scores_.assign(static_cast<size_t>(kStripRows * queries_.padded), 0.0f);
    thresholds_.assign(static_cast<size_t>(queries_.padded), kNegInf);
#if defined(__x86_64__)
    if (amx_) {
      short_strip_.assign(static_cast<size_t>(kStripRows * params_.dim), 0);
      ConfigureTiles();
    }
#endif
    size_t slab = static_cast<size_t>(
        std::upper_bound(slab_begin.begin(), slab_begin.end(), begin) - slab_begin.begin() - 1);
    for (int64_t row = begin; row < end; ++slab) {
      const int64_t slab_end = std::min(end, slab_begin[slab] + params_.slabs[slab].row_count);
      const char* rows = static_cast<const char*>(params_.slabs[slab].rows) +
                         (row - slab_begin[slab]) * params_.dim * DTypeBytes(params_.dtype);
      ScanRows(rows, row, slab_end - row, best);
      row = std::max(row, slab_end);
    }
#if defined(__x86_64__)
    if (amx_) ReleaseTiles();
#endif
  }

 private:
  void ScanRows(const char* rows, int64_t index, int64_t count, std::vector<TopK>* best) {
    const int64_t row_bytes = params_.dim * DTypeBytes(params_.dtype);
    for (int64_t r = 0; r < count; r += kStripRows) {
      const int64_t strip = std::min(kStripRows, count - r);
      Score(rows + r * row_bytes, strip);
      Keep(index + r, strip, best);
    }
  }

  void Score(const char* strip, int64_t rows) {
    const int64_t dim = params_.dim;
    if (params_.dtype == DType::kF32) {
      ScoreStripVector(isa_, reinterpret_cast<const float*>(strip), rows, dim, queries_,
                       params_.n_queries, scores_.data());
      return;
    }
#if defined(__x86_64__)
    if (amx_) {
      const Bf16* rows_begin = reinterpret_cast<const Bf16*>(strip);
      if (rows <
          kStripRows) {  // tiles read whole strips: the rest must not be someone else's memory
        std::memcpy(short_strip_.data(), strip, static_cast<size_t>(rows * dim) * sizeof(Bf16));
        rows_begin = short_strip_.data();
      }
      ScoreStripAmx(rows_begin, dim, queries_, scores_.data());
      return;
    }
#endif
    ScoreStripVector(isa_, reinterpret_cast<const Bf16*>(strip), rows, dim, queries_,
                     params_.n_queries, scores_.data());
  }

  void Keep(int64_t index, int64_t rows, std::vector<TopK>* best) {
    const int64_t n = params_.n_queries;
    for (int64_t r = 0; r < rows; ++r) {
      const float* scores = scores_.data() + r * queries_.padded;
      for (int64_t g = 0; g < n; g += kGroupQueries) {
        for (uint32_t mask = AboveThreshold(isa_, scores + g, thresholds_.data() + g); mask != 0;
             mask &= mask - 1) {
          const int64_t q = g + __builtin_ctz(mask);
          if (q >= n) break;
          TopK& top = (*best)[static_cast<size_t>(q)];
          top.Offer({scores[q], index + r});
          thresholds_[static_cast<size_t>(q)] = top.threshold();
        }
      }
    }
  }

  const LandmarkTopKParams& params_;
  const PackedQueries& queries_;
  const CpuIsa isa_;
  const bool amx_;
  std::vector<float> scores_;      // [kStripRows, padded]
  std::vector<float> thresholds_;  // [padded]
  std::vector<Bf16> short_strip_;  // [kStripRows, dim]
};

void WriteResult(const LandmarkTopKParams& params, int64_t q, std::vector<Candidate>* merged) {
  const size_t kept = std::min(merged->size(), static_cast<size_t>(params.k));
  std::partial_sort(merged->begin(), merged->begin() + static_cast<ptrdiff_t>(kept), merged->end(),
                    Better);
  for (int64_t i = 0; i < params.k; ++i) {
    const bool present = static_cast<size_t>(i) < kept;
    params.indices[q * params.k + i] = present ? (*merged)[static_cast<size_t>(i)].index : -1;
    params.scores[q * params.k + i] = present ? (*merged)[static_cast<size_t>(i)].score : kNegInf;
  }
}

}  // namespace

void LandmarkTopKCpu(ThreadPool& pool, const LandmarkTopKParams& params, CpuIsa isa) {
  std::vector<int64_t> slab_begin;
  slab_begin.reserve(params.slabs.size());
  int64_t rows = 0;
  for (const LandmarkSlab& slab : params.slabs) {
    slab_begin.push_back(rows);
    rows += slab.row_count;
  }
  const PackedQueries queries = Pack(params, isa);
  const int64_t strips = (rows + kStripRows - 1) / kStripRows;
  const int64_t block_rows =
      std::max(kBlockRowsMin, (strips + kBlocksMax - 1) / kBlocksMax * kStripRows);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  std::vector<std::vector<TopK>> best(static_cast<size_t>(blocks));
  pool.ParallelFor(blocks, [&](int64_t block) {
    std::vector<TopK>& heaps = best[static_cast<size_t>(block)];
    heaps.assign(static_cast<size_t>(params.n_queries), TopK(params.k));
    BlockScan(params, queries, isa)
        .Run(slab_begin, block * block_rows, std::min(rows, (block + 1) * block_rows), &heaps);
  });
  std::vector<Candidate> merged;
  for (int64_t q = 0; q < params.n_queries; ++q) {
    merged.clear();
    for (const std::vector<TopK>& heaps : best) {
      const std::vector<Candidate>& more = heaps[static_cast<size_t>(q)].candidates();
      merged.insert(merged.end(), more.begin(), more.end());
    }
    WriteResult(params, q, &merged);
  }
}

}  // namespace mneme
