// What smaller landmarks would cost: how many of a question's best chunks stay the same when each
// landmark is rounded to int8 (one scale a row) or fp8 (e4m3, one scale a row) instead of bf16.
//
//   landmark_types_bench QUESTIONS TEXT... [--bundle FOLDER]
//
// QUESTIONS: a file of one question a line. The memory is all TEXT files. A question is asked as
// Retrieve asks it (the row of its last token) and as Generate does (all rows of the prompt).

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "bench/measure.h"
#include "bench/model_setup.h"

namespace mneme::bench {
namespace {

constexpr int64_t kBest = 8;

// Nearest number of fp8 e4m3 (largest 448), as a float.
float RoundToFp8(float v) {
  if (v == 0 || std::isnan(v)) return v;
  int exponent;
  std::frexp(v, &exponent);                         // v = f 2^exponent, f in [0.5, 1)
  const int unit = std::max(exponent - 1, -6) - 3;  // three bits behind the leading one
  const float rounded = std::ldexp(std::nearbyint(std::ldexp(v, -unit)), unit);
  return std::clamp(rounded, -448.0f, 448.0f);
}

enum class Kind { kInt8, kFp8 };

void RoundRow(Kind kind, float* row, int64_t dim) {
  float top = 0;
  for (int64_t d = 0; d < dim; ++d) top = std::max(top, std::fabs(row[d]));
  if (top == 0) return;
  const float scale = top / (kind == Kind::kInt8 ? 127.0f : 448.0f);
  for (int64_t d = 0; d < dim; ++d) {
    const float v = row[d] / scale;
    row[d] = (kind == Kind::kInt8 ? std::nearbyint(v) : RoundToFp8(v)) * scale;
  }
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  if (text.str().empty()) OrDie(absl::NotFoundError(path));
  return text.str();
}

// Landmarks of a text, as stored, in f32.
std::vector<float> LandmarksOf(const Model& model, const std::string& text) {
  std::vector<Token> tokens;
  model.tokenizer().Encode(text, &tokens);
  std::vector<TokenId> ids;
  for (const Token& token : tokens) ids.push_back(token.id);
  const int64_t segment = model.config().segment_size;
  std::vector<absl::Span<const TokenId>> segments;
  std::vector<float> landmarks;
  const auto run = [&] {
    std::vector<SegmentChunks> chunks;
    OrDie(model.ForwardLower(segments, &chunks));
    for (const SegmentChunks& c : chunks) {
      for (size_t i = 0; i + 1 < c.landmarks.size(); i += 2) {
        Bf16 half;
        std::memcpy(&half, c.landmarks.data() + i, 2);
        landmarks.push_back(Bf16ToFloat(half));
      }
    }
    segments.clear();
  };
  const int64_t count =
      static_cast<int64_t>(ids.size()) / model.config().chunk_size * model.config().chunk_size;
  for (int64_t at = 0; at < count; at += segment) {
    segments.push_back(absl::MakeConstSpan(ids).subspan(at, std::min(segment, count - at)));
    if (segments.size() == 8) run();
  }
  if (!segments.empty()) run();
  return landmarks;
}

std::vector<int64_t> BestOf(Backend& backend, const std::vector<float>& queries, int64_t dim,
                            const std::vector<float>& landmarks) {
  const int64_t n = static_cast<int64_t>(queries.size()) / dim;
  const LandmarkSlab slab = {.rows = landmarks.data(),
                             .row_count = static_cast<int64_t>(landmarks.size()) / dim};
  std::vector<int64_t> indices(n * kBest);
  std::vector<float> scores(n * kBest);
  OrDie(backend.LandmarkTopK({.queries = queries.data(),
                              .n_queries = n,
                              .dim = dim,
                              .dtype = DType::kF32,
                              .slabs = absl::MakeConstSpan(&slab, 1),
                              .k = kBest,
                              .indices = indices.data(),
                              .scores = scores.data()}));
  return indices;
}

void Compare(const char* what, const std::vector<int64_t>& wanted,
             const std::vector<int64_t>& got) {
  int64_t lists = 0, same_first = 0, same_set = 0, kept = 0;
  for (size_t at = 0; at < wanted.size(); at += kBest, ++lists) {
    std::vector<int64_t> a(wanted.begin() + at, wanted.begin() + at + kBest),
        b(got.begin() + at, got.begin() + at + kBest), both;
    same_first += a[0] == b[0];
    std::sort(a.begin(), a.end());
    std::sort(b.begin(), b.end());
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    same_set += a == b;
    kept += static_cast<int64_t>(both.size());
  }
  const auto percent = [](int64_t part, int64_t all) {
    return 100.0 * static_cast<double>(part) / static_cast<double>(std::max<int64_t>(all, 1));
  };
  std::printf(
      "%-34s %8ld lists: first the same %7.3f %%, all 8 the same %7.3f %%, chunks kept %7.3f %%\n",
      what, static_cast<long>(lists), percent(same_first, lists), percent(same_set, lists),
      percent(kept, lists * kBest));
}

int Main(int argc, char** argv) {
  std::string bundle = "models/mneme-small";
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--bundle" && i + 1 < argc) {
      bundle = argv[++i];
    } else {
      files.push_back(argv[i]);
    }
  }
  if (files.size() < 2) {
    std::fprintf(stderr, "usage: landmark_types_bench QUESTIONS TEXT... [--bundle FOLDER]\n");
    return 2;
  }
  const auto backend = OrDie(CreateBackend("cpu", {}));
  const auto model = OrDie(Model::Create(OrDie(LoadBundle(bundle)), *backend, {}));
  const int64_t dim = model->config().landmark_dim;
  if (model->page_layout().dtype != DType::kBf16) {
    OrDie(absl::FailedPreconditionError("the bundle stores no bf16 landmarks here"));
  }
  std::vector<float> landmarks;
  for (size_t i = 1; i < files.size(); ++i) {
    const std::vector<float> more = LandmarksOf(*model, ReadFile(files[i]));
    landmarks.insert(landmarks.end(), more.begin(), more.end());
  }
  std::vector<float> last_rows, all_rows;
  std::istringstream questions(ReadFile(files[0]));
  const Tokenizer& tokenizer = model->tokenizer();
  for (std::string line; std::getline(questions, line);) {
    if (line.empty()) continue;
    std::vector<Token> tokens;
    tokenizer.Encode(line, &tokens);
    std::vector<TokenId> ids = {tokenizer.PieceToId(model->config().question_token)};
    for (const Token& token : tokens) ids.push_back(token.id);
    ids.push_back(tokenizer.PieceToId(model->config().answer_token));
    const std::unique_ptr<ReaderState> state = model->NewReaderState();
    const ReaderStep step = {.state = state.get(), .ids = ids};
    LowerRows lower;
    OrDie(model->ReadLower(absl::MakeConstSpan(&step, 1), &lower));
    const float* rows = lower.queries.as<float>();
    const int64_t count = static_cast<int64_t>(ids.size()) * dim;
    all_rows.insert(all_rows.end(), rows, rows + count);
    last_rows.insert(last_rows.end(), rows + count - dim, rows + count);
  }
  std::printf("%s\n%ld chunks of %zu files, landmarks of %ld, beside bf16\n", Machine().c_str(),
              static_cast<long>(static_cast<int64_t>(landmarks.size()) / dim), files.size() - 1,
              static_cast<long>(dim));
  const std::vector<int64_t> last = BestOf(*backend, last_rows, dim, landmarks);
  const std::vector<int64_t> all = BestOf(*backend, all_rows, dim, landmarks);
  for (const Kind kind : {Kind::kInt8, Kind::kFp8}) {
    std::vector<float> rounded = landmarks;
    for (size_t at = 0; at < rounded.size(); at += static_cast<size_t>(dim)) {
      RoundRow(kind, rounded.data() + at, dim);
    }
    const std::string name = kind == Kind::kInt8 ? "int8, " : "fp8 e4m3, ";
    Compare((name + "last row of a question").c_str(), last,
            BestOf(*backend, last_rows, dim, rounded));
    Compare((name + "every row").c_str(), all, BestOf(*backend, all_rows, dim, rounded));
  }
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Main(argc, argv); }
