// One long document through the whole engine (text log, encoder, scheduler, network, store): tokens
// a second and memory of the process for each eighth of it. Both must stay flat: no work may grow
// with the length of the document.
//
//   document_growth_bench [MiB of text, default 10] [bundle, default models/mneme-small]

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "bench/model_setup.h"
#include "engine/engine.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"

namespace mneme::bench {
namespace {

constexpr int kParts = 8;

double ResidentMiB() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

// The demo book again and again, each time with a chapter number, so that no two parts are equal.
std::string LongText(size_t bytes) {
  std::ifstream file("deploy/demo/book.txt");
  std::stringstream book;
  book << file.rdbuf();
  if (book.str().empty()) OrDie(absl::NotFoundError("deploy/demo/book.txt; run from the root"));
  std::string text;
  for (int i = 1; text.size() < bytes; ++i) {
    absl::StrAppend(&text, "\nVolume ", i, ".\n\n", book.str());
  }
  while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xC0) == 0x80) --bytes;
  text.resize(bytes);
  return text;
}

int Run(int argc, char** argv) {
  const double mib = argc > 1 ? std::atof(argv[1]) : 10;
  const std::string bundle = argc > 2 ? argv[2] : "models/mneme-small";
  const std::string text = LongText(static_cast<size_t>(mib * (1 << 20)));
  std::string folder = std::filesystem::temp_directory_path() / "mneme_growth_XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return 1;

  Metrics metrics;
  const auto backend = OrDie(CreateCpuBackend({}));
  const auto model = OrDie(Model::Create(OrDie(LoadBundle(bundle)), *backend, {}));
  const PageLayout layout = model->page_layout();
  auto chunks = OrDie(OpenRocksDbChunkStore({.data_dir = folder}, metrics));
  auto store = OrDie(MemoryStore::Open({.page_bytes = layout.page_bytes(),
                                        .landmark_bytes = layout.landmark_bytes(),
                                        .derivation_fingerprint = model->derivation_fingerprint(),
                                        .host_page_bytes_max = int64_t{64} << 20},
                                       *chunks, metrics, RealClock()));
  auto engine = OrDie(Engine::Open({}, *model, *backend, *store, metrics, RealClock()));
  OrDie(engine->CreateMemory("tenants/default/memories/m", "").status());

  absl::Mutex mutex;
  IngestProgress told;
  bool ready = false;
  absl::Status failed;
  auto writer = OrDie(engine->OpenWriter("tenants/default/memories/m/documents/d",
                                         {.progress =
                                              [&](const IngestProgress& progress) {
                                                absl::MutexLock lock(&mutex);
                                                told = progress;
                                              },
                                          .ready =
                                              [&] {
                                                absl::MutexLock lock(&mutex);
                                                ready = true;
                                              },
                                          .failed =
                                              [&](absl::Status status) {
                                                absl::MutexLock lock(&mutex);
                                                failed = std::move(status);
                                              }}));
  std::printf("%s\n%s, %.1f MiB of text, one document; host page tier 64 MiB\n", Machine().c_str(),
              backend->description().c_str(), mib);
  std::printf("%10s %12s %12s %14s\n", "visible", "tokens", "tokens/s", "resident MiB");
  absl::Time part_start = absl::Now();
  int64_t part_tokens = 0;
  int part = 1;
  const auto size = static_cast<int64_t>(text.size());
  const auto report = [&] {
    IngestProgress now;
    {
      absl::MutexLock lock(&mutex);
      OrDie(failed);
      now = told;
    }
    if (now.visible_bytes < size * part / kParts) return;
    const absl::Time time = absl::Now();
    std::printf("%9.1f%% %12ld %12.0f %14.1f\n",
                100.0 * static_cast<double>(now.visible_bytes) / static_cast<double>(size),
                static_cast<long>(now.token_count),
                static_cast<double>(now.token_count - part_tokens) /
                    absl::ToDoubleSeconds(time - part_start),
                ResidentMiB());
    std::fflush(stdout);
    part_start = time;
    part_tokens = now.token_count;
    ++part;
  };
  for (size_t sent = 0; sent < text.size();) {
    if (!writer->ready()) {
      absl::MutexLock lock(&mutex);
      while (!ready) {
        mutex.AwaitWithTimeout(absl::Condition(&ready), absl::Milliseconds(100));
        mutex.Unlock();
        report();
        mutex.Lock();
      }
      ready = false;
    }
    const std::string piece = text.substr(sent, 64 << 10);
    OrDie(writer->Append(static_cast<int64_t>(sent), piece));
    sent += piece.size();
    report();
  }
  OrDie(writer->Seal());
  while (part <= kParts) {
    report();
    absl::SleepFor(absl::Milliseconds(20));
  }
  writer.reset();
  engine.reset();
  store.reset();
  chunks.reset();
  std::filesystem::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace mneme::bench

int main(int argc, char** argv) { return mneme::bench::Run(argc, argv); }
