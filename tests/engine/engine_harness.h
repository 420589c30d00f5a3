// EngineHarness: an engine over the fake model and a real store in a directory of its own, with
// restarts and faults; TestWriter: a writer whose callbacks a test can wait for.

#ifndef MNEME_TESTS_ENGINE_ENGINE_HARNESS_H_
#define MNEME_TESTS_ENGINE_ENGINE_HARNESS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "engine/engine.h"
#include "kernels/backend.h"
#include "memory_store/memory_store.h"
#include "memory_store/rocksdb/rocksdb_chunk_store.h"
#include "tests/engine/fake_model.h"
#include "tests/engine/fault_chunk_store.h"

namespace mneme {

// How long a test waits for something that must come.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

// What a writer was told.
class TestWriter {
 public:
  // Aborts when the writer cannot be opened.
  TestWriter(Engine& engine, const std::string& document);
  ~TestWriter();

  Writer* operator->() { return writer_.get(); }
  void Drop() { writer_.reset(); }

  // Appends at the end, waiting whenever the writer is not ready. Aborts on an error.
  void Send(absl::string_view text);

  // Each waits up to kPatience and returns whether it came.
  bool WaitDurable(int64_t bytes);
  bool WaitVisible(int64_t bytes);
  bool WaitSealed();
  bool WaitReadyCallback();
  // The status that `failed` was called with; OK when it never came.
  absl::Status WaitFailed();
  // The same, as of now.
  absl::Status Failed() const;

  IngestProgress told() const;
  int progress_calls() const;
  // A callback ran at the same time as another, or progress went back.
  bool misbehaved() const;

 private:
  bool WaitFor(bool (*condition)(TestWriter*), int64_t wanted);
  void Enter() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  IngestProgress told_ ABSL_GUARDED_BY(mutex_);
  int progress_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int ready_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  bool inside_ ABSL_GUARDED_BY(mutex_) = false;
  bool misbehaved_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<Writer> writer_;
};

// Holds up whoever passes until it is opened. Thread-safe.
class Gate {
 public:
  void Pass() {
    absl::MutexLock lock(&mutex_);
    ++passing_;
    mutex_.AwaitWithTimeout(absl::Condition(&open_), kPatience);
  }
  void Open() {
    absl::MutexLock lock(&mutex_);
    open_ = true;
  }
  // Waits until `count` have come to it.
  bool WaitArrived(int count) {
    absl::MutexLock lock(&mutex_);
    const auto arrived = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return passing_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&arrived), kPatience);
  }

 private:
  absl::Mutex mutex_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  int passing_ ABSL_GUARDED_BY(mutex_) = 0;
};

class EngineHarness {
 public:
  explicit EngineHarness(EngineOptions options = TestOptions());
  ~EngineHarness();

  // Short times, small limits.
  static EngineOptions TestOptions();

  Engine& engine() { return *engine_; }
  MemoryStore& store() { return *store_; }
  FakeModel& model() { return model_; }
  FaultChunkStore& faults() { return *faults_; }
  Metrics& metrics() { return metrics_; }
  SimulatedClock& clock() { return clock_; }
  EngineOptions& options() { return options_; }
  MemoryStoreOptions& store_options() { return store_options_; }

  const std::string& folder() const { return folder_; }  // where everything is

  // Ends the engine, and with it the store, as a crash of the process would: nothing is drained.
  void Stop();
  // Opens both again; `use_simulated_clock`: the engine's clock moves only when told.
  void Start();
  void Restart() {
    Stop();
    Start();
  }
  void UseSimulatedClock() { simulated_ = true; }

  // A gate that lives as long as the engine, and opens at its end.
  Gate& NewGate();
  // Runs `first` and holds up its batch until a step of each of the others waits: these go on
  // together. Returns when all have ended.
  void RunTogether(const std::function<void()>& first,
                   const std::vector<std::function<void()>>& others);
  // Flips a byte of every record of a table whose value contains `part`; returns how many there
  // were.
  int Damage(Table table, const std::string& part);
  // Loses records of a table, as a disk that had not been synced would. Only while stopped.
  void LoseTable(Table table);

  static std::string Memory(const std::string& id) { return "tenants/default/memories/" + id; }
  static std::string Document(const std::string& memory, const std::string& id) {
    return Memory(memory) + "/documents/" + id;
  }

  void CreateMemory(const std::string& id);
  // Writes a whole document and waits until it is visible.
  void Ingest(const std::string& memory, const std::string& document, const std::string& text,
              bool seal = false);
  // Adds text at the end of a document, in a record of its own, and waits until it is visible.
  void Append(const std::string& memory, const std::string& document, const std::string& text);
  bool WaitReady();
  // Waits until the metric has the value, or at least that.
  bool WaitMetric(const std::string& name_and_labels, double value);
  bool WaitMetricAtLeast(const std::string& name_and_labels, double value);
  // Value of a metric with its labels, as exposed; -1 when there is none.
  double Metric(const std::string& name_and_labels) const;

  // What is wrong with the derived records of a document, compared with `text` encoded and cut at
  // one go; empty when nothing is.
  std::string DerivedDiffers(const std::string& memory, const std::string& document,
                             const std::string& text);

 private:
  std::vector<std::unique_ptr<Gate>> gates_;
  std::string folder_;
  EngineOptions options_;
  MemoryStoreOptions store_options_;
  RocksDbOptions rocksdb_options_;
  bool simulated_ = false;
  Metrics metrics_;
  SimulatedClock clock_{absl::FromUnixSeconds(1'700'000'000)};
  FakeModel model_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<ChunkStore> rocksdb_;
  std::unique_ptr<FaultChunkStore> faults_;
  std::unique_ptr<MemoryStore> store_;
  std::unique_ptr<Engine> engine_;
};

// `count` words drawn with `seed`; some not ASCII, some long, some rare bytes.
std::string RandomText(uint64_t seed, int count);
// `count` plain words drawn with `seed`, a token each.
std::string RandomQuestion(uint64_t seed, int count);

}  // namespace mneme

#endif  // MNEME_TESTS_ENGINE_ENGINE_HARNESS_H_
