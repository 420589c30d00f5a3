// A file system for RocksDB that fails when told: torn appends, syncs that fail, a full disk, slow
// syncs. Everything else is the machine's.

#ifndef MNEME_TESTS_MEMORY_STORE_FAULTY_ENV_H_
#define MNEME_TESTS_MEMORY_STORE_FAULTY_ENV_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace mneme {

// Thread-safe.
class FaultyFileSystem : public rocksdb::FileSystemWrapper {
 public:
  // What an append of `bytes` bytes to a file does: how many of them are written, and what is
  // answered.
  struct Appended {
    size_t bytes;
    rocksdb::IOStatus status;
  };
  using OnAppend = std::function<Appended(const std::string& name, size_t bytes)>;
  using OnSync = std::function<rocksdb::IOStatus(const std::string& name)>;

  FaultyFileSystem() : rocksdb::FileSystemWrapper(rocksdb::FileSystem::Default()) {}

  const char* Name() const override { return "FaultyFileSystem"; }

  void SetOnAppend(OnAppend hook) {
    absl::MutexLock lock(&mutex_);
    on_append_ = std::move(hook);
  }
  // Runs before a sync; an error is its result, and nothing is synced.
  void SetOnSync(OnSync hook) {
    absl::MutexLock lock(&mutex_);
    on_sync_ = std::move(hook);
  }
  void Heal() {
    SetOnAppend(nullptr);
    SetOnSync(nullptr);
  }
  int faults() const { return faults_.load(); }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override {
    const rocksdb::IOStatus status =
        rocksdb::FileSystemWrapper::NewWritableFile(name, options, file, debug);
    if (status.ok()) *file = std::make_unique<File>(*this, name, std::move(*file));
    return status;
  }

 private:
  class File : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    File(FaultyFileSystem& system, std::string name, std::unique_ptr<rocksdb::FSWritableFile> file)
        : rocksdb::FSWritableFileOwnerWrapper(std::move(file)),
          system_(system),
          name_(std::move(name)) {}

    using rocksdb::FSWritableFileOwnerWrapper::Append;
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* debug) override {
      const Appended appended = system_.DoAppend(name_, data.size());
      if (appended.bytes > 0) {
        const rocksdb::IOStatus status = rocksdb::FSWritableFileOwnerWrapper::Append(
            rocksdb::Slice(data.data(), appended.bytes), options, debug);
        if (!status.ok()) return status;
      }
      return appended.status;
    }
    rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                             const rocksdb::DataVerificationInfo& /*verification*/,
                             rocksdb::IODebugContext* debug) override {
      return Append(data, options, debug);
    }
    rocksdb::IOStatus Sync(const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* debug) override {
      const rocksdb::IOStatus status = system_.DoSync(name_);
      return status.ok() ? rocksdb::FSWritableFileOwnerWrapper::Sync(options, debug) : status;
    }
    rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options,
                            rocksdb::IODebugContext* debug) override {
      const rocksdb::IOStatus status = system_.DoSync(name_);
      return status.ok() ? rocksdb::FSWritableFileOwnerWrapper::Fsync(options, debug) : status;
    }

   private:
    FaultyFileSystem& system_;
    const std::string name_;
  };

  Appended DoAppend(const std::string& name, size_t bytes) {
    OnAppend hook;
    {
      absl::MutexLock lock(&mutex_);
      hook = on_append_;
    }
    if (!hook) return {bytes, rocksdb::IOStatus::OK()};
    Appended appended = hook(name, bytes);
    if (!appended.status.ok()) ++faults_;
    return appended;
  }
  rocksdb::IOStatus DoSync(const std::string& name) {
    OnSync hook;
    {
      absl::MutexLock lock(&mutex_);
      hook = on_sync_;
    }
    if (!hook) return rocksdb::IOStatus::OK();
    rocksdb::IOStatus status = hook(name);
    if (!status.ok()) ++faults_;
    return status;
  }

  absl::Mutex mutex_;
  OnAppend on_append_ ABSL_GUARDED_BY(mutex_);
  OnSync on_sync_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int> faults_{0};
};

}  // namespace mneme

#endif  // MNEME_TESTS_MEMORY_STORE_FAULTY_ENV_H_
