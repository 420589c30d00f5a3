// Speed of the tokenizer on English text, beside the SentencePiece program (spm_encode) on the same
// file in the same run.
//
//   tokenizer_bench [TEXT_FILE [TOKENIZER_MODEL [REPETITIONS]]]
//
// Without a file: Debian's copies of the GPL, MPL and Artistic licenses, over and over. Rates are
// bytes per second of CPU time of the one thread that works, so that other programs on the machine
// count little; elapsed time is shown too.

#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/measure.h"
#include "model/tokenizer.h"

namespace mneme::bench {
namespace {

constexpr size_t kDefaultTextBytes = 4'000'000;
constexpr size_t kStreamPieceBytes = 4096;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string DefaultText() {
  std::string once;
  for (const char* name : {"GPL-3", "MPL-2.0", "Artistic"}) {
    once += ReadFile(absl::StrCat("/usr/share/common-licenses/", name));
  }
  std::string text;
  while (!once.empty() && text.size() < kDefaultTextBytes) text += once;
  return text;
}

double ThreadCpuSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double ChildrenCpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Prints one row: MB/s of `clock`'s seconds (median, slowest, fastest) and of elapsed seconds
// (median).
void Report(const char* name, size_t bytes, int repetitions, double (*clock)(),
            const std::function<void()>& work) {
  std::vector<double> rates, elapsed_rates;
  work();
  for (int i = 0; i < repetitions; ++i) {
    const double start = clock();
    const double elapsed = Seconds(work);
    const double megabytes = static_cast<double>(bytes) / 1e6;
    rates.push_back(megabytes / (clock() - start));
    elapsed_rates.push_back(megabytes / elapsed);
  }
  const Spread cpu = SpreadOf(rates), wall = SpreadOf(elapsed_rates);
  std::printf("%-34s %8.2f %8.2f %8.2f %10.2f\n", name, cpu.median, cpu.min, cpu.max, wall.median);
}

int Run(int argc, char** argv) {
  const std::string text = argc > 1 ? ReadFile(argv[1]) : DefaultText();
  const std::string model_path = argc > 2 ? argv[2] : "models/mneme-small/tokenizer.model";
  const int repetitions = argc > 3 ? std::atoi(argv[3]) : 7;
  const auto tokenizer = Tokenizer::Load(ReadFile(model_path));
  if (!tokenizer.ok() || text.empty() || repetitions < 1) {
    std::fprintf(stderr, "tokenizer_bench: no text, no repetitions, or no model at %s: %s\n",
                 model_path.c_str(), tokenizer.status().ToString().c_str());
    return 1;
  }
  std::vector<Token> tokens;
  (*tokenizer)->Encode(text, &tokens);
  std::printf("%s\n%zu bytes of text, %zu tokens, vocabulary of %d, %d repetitions\n",
              Machine().c_str(), text.size(), tokens.size(), (*tokenizer)->vocab_size(),
              repetitions);
  std::printf("%-34s %8s %8s %8s %10s\n", "MB/s of CPU time", "median", "min", "max", "elapsed");
  Report("Tokenizer::Encode", text.size(), repetitions, ThreadCpuSeconds, [&] {
    tokens.clear();
    (*tokenizer)->Encode(text, &tokens);
  });
  Report("StreamingEncoder, 4096-byte pieces", text.size(), repetitions, ThreadCpuSeconds, [&] {
    tokens.clear();
    StreamingEncoder encoder(**tokenizer);
    for (size_t at = 0; at < text.size(); at += kStreamPieceBytes) {
      encoder.Append(absl::string_view(text).substr(at, kStreamPieceBytes), &tokens);
    }
    encoder.Finish(&tokens);
  });
  if (std::system("command -v spm_encode > /dev/null 2>&1") != 0) {
    std::printf("spm_encode is not installed (Debian package sentencepiece): no comparison\n");
    return 0;
  }
  const std::string copy = absl::StrCat("/tmp/tokenizer_bench_", getpid(), ".txt");
  std::ofstream(copy, std::ios::binary) << text;
  const std::string command = absl::StrCat("spm_encode --model='", model_path,
                                           "' --output_format=id < ", copy, " > /dev/null");
  bool failed = false;
  Report("spm_encode (with its start)", text.size(), repetitions, ChildrenCpuSeconds,
         [&] { failed |= std::system(command.c_str()) != 0; });
  std::remove(copy.c_str());
  if (failed) std::printf("spm_encode failed: its row means nothing\n");
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Run(argc, argv); }
