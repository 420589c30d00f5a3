// The chunk encoder's operations and the reader's sparse attention on every backend against
// their double twins.

#include "tests/reference/attention_reference.h"

#include "tests/kernels/kernel_test_util.h"

namespace mneme {
namespace {

// Which pages each row reads, [rows, pages_max], and how much.
struct PageTable {
  PageTable(int64_t row_count, int64_t row_pages)
      : rows(row_count),
        pages_max(row_pages),
        pages(rows * pages_max, nullptr),
        weights(rows * pages_max, 0.0f),
        counts(rows, 0) {}

  int64_t rows, pages_max;
  std::vector<const void*> pages;
  std::vector<float> weights;
  std::vector<int32_t> counts;
};

class AttentionTest : public KernelTest {
 protected:
  // HsaAttend of random q.
  void ExpectHsaMatchesTheTwin(const PageTable& table, DType page_dtype, int64_t heads,
                               int64_t head_dim, int64_t chunk_tokens, DType out_dtype,
                               double tolerance) {
    const int64_t width = heads * head_dim;
    const int64_t q_stride = width + Gap(), out_stride = width + Gap();
    const std::vector<float> q = Normal(table.rows * q_stride);
    Output out(out_dtype, table.rows, width, out_stride);
    const HsaAttendParams p = {.q = q.data(),
                               .q_stride = q_stride,
                               .pages = table.pages.data(),
                               .weights = table.weights.data(),
                               .page_counts = table.counts.data(),
                               .pages_max = table.pages_max,
                               .page_dtype = page_dtype,
                               .rows = table.rows,
                               .heads = heads,
                               .head_dim = head_dim,
                               .chunk_tokens = chunk_tokens,
                               .out = out.data(),
                               .out_dtype = out_dtype,
                               .out_stride = out_stride};
    ASSERT_TRUE(backend_->HsaAttend(p).ok());
    out.Expect(HsaAttendReference(p), tolerance);
  }
};

constexpr DType kTypes[] = {DType::kF32, DType::kBf16};

TEST_P(AttentionTest, ChunkInputMatchesItsTwin) {
  for (const int64_t chunks : {0, 1, 3}) {
    for (const int64_t chunk_tokens : {1, 16, 64}) {
      for (const int64_t halo_tokens : {0, 1, 31, 150}) {
        const int64_t width = Uniform(0, 1) == 0 ? Uniform(1, 100) : 4 * Uniform(1, 100);
        const int64_t hidden_stride = width + Gap(), out_stride = width + Gap();
        // The last chunk's sequence may go on behind it.
        const int64_t rows = chunks * chunk_tokens + Uniform(0, 200);
        const std::vector<float> hidden = Normal(rows * hidden_stride), weight = Normal(width),
                                 cls = Normal(width);
        std::vector<int32_t> ends(chunks, static_cast<int32_t>(rows));
        if (chunks == 3 && Uniform(0, 1) == 0) ends[0] = static_cast<int32_t>(chunk_tokens);
        Output out(DType::kF32, chunks * (chunk_tokens + halo_tokens + 1), width, out_stride);
        const ChunkInputParams p = {.hidden = hidden.data(),
                                    .hidden_stride = hidden_stride,
                                    .weight = weight.data(),
                                    .eps = 1e-5f,
                                    .cls = cls.data(),
                                    .chunks = chunks,
                                    .chunk_tokens = chunk_tokens,
                                    .halo_tokens = halo_tokens,
                                    .sequence_ends = halo_tokens > 0 ? ends.data() : nullptr,
                                    .width = width,
                                    .out = static_cast<float*>(out.data()),
                                    .out_stride = out_stride};
        ASSERT_TRUE(backend_->ChunkInput(p).ok());
        out.Expect(ChunkInputReference(p), kF32Tolerance);
      }
    }
  }
}

TEST_P(AttentionTest, ChunkAttentionMatchesItsTwin) {
  for (const DType dtype : kTypes) {
    for (const int64_t rows : {1, 2, 16, 17, 65, 81, 96, 97, 129, 145}) {
      for (const int64_t head_dim : {1, 16, 30, 64}) {
        const int64_t groups = Uniform(0, 3), heads = Uniform(1, 6), width = heads * head_dim;
        const int64_t stride = 3 * width + Gap(), out_stride = width + Gap();
        const std::vector<float> qkv = Normal(groups * rows * stride);
        Output out(dtype, groups * rows, width, out_stride);
        const ChunkAttentionParams p = {.qkv = qkv.data(),
                                        .qkv_stride = stride,
                                        .groups = groups,
                                        .group_rows = rows,
                                        .heads = heads,
                                        .head_dim = head_dim,
                                        .out = out.data(),
                                        .out_dtype = dtype,
                                        .out_stride = out_stride};
        ASSERT_TRUE(backend_->ChunkAttention(p).ok());
        // bf16 output goes with bf16 operands: 2^-8 at most in q, k, p and v.
        out.Expect(ChunkAttentionReference(p), dtype == DType::kF32 ? kF32Tolerance : 2e-2);
      }
    }
  }
}

TEST_P(AttentionTest, ChunkAttentionThatNormsMatchesItsTwin) {
  if (ActivationTypes().size() == 1) GTEST_SKIP() << "q and k come normed to this backend";
  for (const DType in_dtype : kTypes) {
    for (const DType dtype : kTypes) {
      for (const int64_t rows : {1, 2, 17, 65, 81, 96, 97, 129, 145}) {
        for (const int64_t head_dim : {2, 30, 64}) {
          const int64_t groups = Uniform(0, 3), heads = Uniform(1, 6), width = heads * head_dim;
          const int64_t stride = 3 * width + 2 * Gap(), out_stride = width + Gap();
          const Input qkv(Normal(groups * rows * stride, 3));
          const std::vector<float> q_norm = Normal(head_dim, 0.3, 1),
                                   k_norm = Normal(head_dim, 0.3, 1);
          std::vector<float> cosine, sine;
          for (const float angle : Normal(rows * head_dim / 2, 3)) {
            cosine.push_back(std::cos(angle));
            sine.push_back(std::sin(angle));
          }
          Output out(dtype, groups * rows, width, out_stride);
          const ChunkAttentionParams p = {.qkv = qkv.data(in_dtype),
                                          .in_dtype = in_dtype,
                                          .qkv_stride = stride,
                                          .groups = groups,
                                          .group_rows = rows,
                                          .heads = heads,
                                          .head_dim = head_dim,
                                          .q_norm = q_norm.data(),
                                          .k_norm = k_norm.data(),
                                          .eps = 1e-5f,
                                          .cosine = cosine.data(),
                                          .sine = sine.data(),
                                          .out = out.data(),
                                          .out_dtype = dtype,
                                          .out_stride = out_stride};
          ASSERT_TRUE(backend_->ChunkAttention(p).ok());
          // bf16 output goes with bf16 operands: 2^-8 at most in q, k (whose products sum up to 8
          // or so), p and v.
          out.Expect(ChunkAttentionReference(p), dtype == DType::kF32 ? kF32Tolerance : 4e-2);
        }
      }
    }
  }
}

TEST_P(AttentionTest, SwiGluMatchesItsTwin) {
  for (const DType dtype : kTypes) {
    for (const int64_t rows : {0, 1, 50}) {
      for (const int64_t width : {1, 17, 100, 1024}) {
        const int64_t stride = 2 * width + Gap(), out_stride = width + Gap();
        const std::vector<float> gate_up = Normal(rows * stride, 3);
        Output out(dtype, rows, width, out_stride);
        const SwiGluParams p = {.gate_up = gate_up.data(),
                                .gate_up_stride = stride,
                                .rows = rows,
                                .width = width,
                                .out = out.data(),
                                .out_dtype = dtype,
                                .out_stride = out_stride};
        ASSERT_TRUE(backend_->SwiGlu(p).ok());
        out.Expect(SwiGluReference(p), kF32Tolerance);
      }
    }
  }
}

TEST_P(AttentionTest, PagesMatchTheirTwin) {
  for (const DType dtype : kTypes) {
    for (const int64_t chunks : {0, 1, 5}) {
      const int64_t tokens = Uniform(1, 64), width = Uniform(1, 70),
                    stride = 2 * width + Uniform(0, 3), group_rows = tokens + Uniform(0, 40);
      const std::vector<float> kv = Normal(chunks * group_rows * stride), weight = Normal(width);
      Output pages(dtype, chunks * 2 * tokens, width, width);
      const WritePagesParams p = {.k = kv.data(),
                                  .v = kv.data() + width,
                                  .stride = stride,
                                  .k_norm_weight = weight.data(),
                                  .eps = 1e-5f,
                                  .chunks = chunks,
                                  .chunk_tokens = tokens,
                                  .group_rows = group_rows,
                                  .head_dim = width,
                                  .pages = pages.data(),
                                  .page_dtype = dtype};
      ASSERT_TRUE(backend_->WritePages(p).ok());
      pages.Expect(WritePagesReference(p), kF32Tolerance);
    }
  }
}

TEST_P(AttentionTest, HsaAttendMatchesItsTwin) {
  for (const DType page_dtype : kTypes) {
    for (const DType out_dtype : kTypes) {
      for (const int64_t head_dim : {2, 30, 64}) {
        for (const int64_t tokens : {1, 16, 33, 64}) {
          const int64_t stored = 5, page_elements = 2 * tokens * head_dim;
          const Input values(Normal(stored * page_elements));
          PageTable table(Uniform(0, 9), Uniform(1, 8));
          for (int64_t r = 0; r < table.rows; ++r) {
            table.counts[r] = static_cast<int32_t>(Uniform(0, table.pages_max));
            for (int64_t i = 0; i < table.counts[r]; ++i) {
              table.pages[r * table.pages_max + i] =
                  static_cast<const char*>(values.data(page_dtype)) +
                  Uniform(0, stored - 1) * page_elements * DTypeBytes(page_dtype);
              table.weights[r * table.pages_max + i] = 1.0f / static_cast<float>(i + 2);
            }
          }
          // With bf16 pages q and the probabilities may be bf16 too: at most 2^-8 each.
          ExpectHsaMatchesTheTwin(table, page_dtype, Uniform(1, 6), head_dim, tokens, out_dtype,
                                  page_dtype == DType::kF32 ? kF32Tolerance : 2e-2);
        }
      }
    }
  }
}

// Many rows of several readers, of which some neighbours read the same pages (CUDA computes such
// calls by page).
TEST_P(AttentionTest, HsaAttendOfManyRowsMatchesItsTwin) {
  for (const DType out_dtype : kTypes) {
    constexpr int64_t kDim = 64, kTokens = 64, kStored = 50, kPageElements = 2 * kTokens * kDim;
    std::vector<Bf16> stored;
    for (const float v : Normal(kStored * kPageElements)) stored.push_back(FloatToBf16(v));
    PageTable table(2048 + Uniform(0, 300), Uniform(1, 9));
    for (int64_t r = 0; r < table.rows; ++r) {
      const bool same = r > 0 && Uniform(0, r < table.rows / 2 ? 300 : 2) != 0;
      table.counts[r] =
          same ? table.counts[r - 1] : static_cast<int32_t>(Uniform(0, table.pages_max));
      for (int64_t i = 0; i < table.counts[r]; ++i) {
        const int64_t at = r * table.pages_max + i;
        table.pages[at] = same ? table.pages[at - table.pages_max]
                               : stored.data() + Uniform(0, kStored - 1) * kPageElements;
        table.weights[at] = 1.0f / static_cast<float>(Uniform(2, 9));
      }
    }
    // q, the probabilities and each page's result may be bf16: at most 2^-8 each.
    ExpectHsaMatchesTheTwin(table, DType::kBf16, Uniform(1, 3), kDim, kTokens, out_dtype, 2e-2);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionTest, testing::ValuesIn(BackendCases()),
                         BackendCaseName);

}  // namespace
}  // namespace mneme
