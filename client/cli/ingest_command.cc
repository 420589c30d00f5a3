// ingest: files, a folder or standard input into one memory.

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cli/commands.h"
#include "client/cli/ingest_files.h"
#include "client/cli/policy.h"
#include "client/cli/progress_line.h"
#include "client/cli/session.h"
#include "client/cli/terminal.h"
#include "client/rpc_error.h"
#include "common/status_macros.h"

namespace mneme {
namespace {

constexpr int kConcurrency = 4;

// Why an ingest does not move at the moment.
std::string WaitingReason(const absl::Status& status) {
  if (IsBrokenConnection(status)) return "the connection to the server is lost";
  return EscapeForTerminal(status.message());
}

// What to add to the sizes of a document to which nothing was added.
const char* NothingNew(const IngestState& state, bool append) {
  if (state.durable_bytes != state.durable_bytes_before) return "";
  if (state.durable_bytes == 0) return " (no text came: the document is there, empty)";
  const int64_t sent_from = append ? state.durable_bytes_before : 0;
  return state.sent_bytes > sent_from ? " (was stored already)"
                                      : " (no text came: the document is as it was)";
}

// One source on its way to one document.
struct Job {
  // As the user named it; "-" is standard input.
  std::string path;
  std::string document;
  std::optional<int64_t> bytes;
  // Look at the whole file first, and send nothing of it unless all is UTF-8.
  bool check_first = false;
};

// Runs the jobs on a few threads, prints each as it is done, in order. Thread-safe where its
// threads meet.
class IngestRun {
 public:
  IngestRun(Session& session, std::vector<Job> jobs)
      : session_(session),
        jobs_(std::move(jobs)),
        begun_(absl::Now()),
        progress_(!session.json() && isatty(STDERR_FILENO)),
        outcomes_(jobs_.size()),
        done_(jobs_.size()) {}

  void Run(int concurrency) {
    std::vector<std::thread> threads;
    for (int i = 0; i < std::min<int>(concurrency, static_cast<int>(jobs_.size())); ++i) {
      threads.emplace_back([this] { Work(); });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // The whole as one object, or a closing line for several files; and the status of the command.
  // `errors`: of what never became a job.
  absl::Status Report(std::vector<absl::Status> errors);

 private:
  void Work();
  IngestOutcome RunJob(const Job& job, size_t index);
  void NoteProgress(size_t index, const IngestState& state);
  void DrawProgress() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Prints jobs that are done, up to the first that is not.
  void PrintDone() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PrintJob(const Job& job, const IngestOutcome& outcome);

  Session& session_;
  const std::vector<Job> jobs_;
  const absl::Time begun_;
  absl::Mutex mutex_;
  ProgressLine progress_ ABSL_GUARDED_BY(mutex_);
  std::vector<IngestOutcome> outcomes_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> done_ ABSL_GUARDED_BY(mutex_);
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t printed_ ABSL_GUARDED_BY(mutex_) = 0;
};

void IngestRun::Work() {
  while (true) {
    size_t index;
    {
      absl::MutexLock lock(&mutex_);
      if (next_ == jobs_.size() || session_.interrupted()) return;
      index = next_++;
    }
    IngestOutcome outcome = RunJob(jobs_[index], index);
    absl::MutexLock lock(&mutex_);
    outcomes_[index] = std::move(outcome);
    done_[index] = true;
    PrintDone();
  }
}

IngestOutcome IngestRun::RunJob(const Job& job, size_t index) {
  std::unique_ptr<TextSource> source;
  if (job.path == "-") {
    source = std::make_unique<PipeSource>(STDIN_FILENO, session_.call().cancellation,
                                          session_.call().deadline);
  } else {
    if (job.check_first) {
      auto invalid = FirstInvalidUtf8(job.path);
      if (!invalid.ok()) return {invalid.status(), {}};
      if (*invalid) {
        return {absl::InvalidArgumentError(
                    absl::StrCat("not UTF-8 at byte ", **invalid, "; nothing of it was sent")),
                {}};
      }
    }
    auto file = FileSource::Open(job.path);
    if (!file.ok()) return {file.status(), {}};
    source = *std::move(file);
  }
  IngestPlan plan;
  plan.document = session_.DocumentName(session_.positional(0), job.document);
  plan.seal = session_.line().Has("--seal");
  plan.wait_visible = !session_.line().Has("--no-wait");
  plan.append = session_.line().Has("--append");
  if (session_.line().Has("--ttl")) {
    plan.ttl = ParseTtl(session_.line().Text("--ttl")).value_or(absl::InfiniteDuration());
  }
  plan.on_progress = [this, index](const IngestState& state) { NoteProgress(index, state); };
  return session_.client().Ingest(plan, *source, session_.call());
}

void IngestRun::NoteProgress(size_t index, const IngestState& state) {
  absl::MutexLock lock(&mutex_);
  const bool waited = !outcomes_[index].state.waiting_for.ok();
  outcomes_[index].state = state;
  if (progress_.enabled()) {
    DrawProgress();
  } else if (!session_.json() && !waited && !state.waiting_for.ok()) {
    absl::FPrintF(stderr, "mneme: %s: %s; trying again\n", jobs_[index].document,
                  WaitingReason(state.waiting_for));
  }
}

void IngestRun::DrawProgress() {
  const bool visible = !session_.line().Has("--no-wait");
  const bool append = session_.line().Has("--append");
  JobProgress sum;
  sum.bytes_total = 0;
  for (size_t i = 0; i < jobs_.size(); ++i) {
    const IngestState& state = outcomes_[i].state;
    int64_t done = visible ? state.visible_bytes : state.durable_bytes;
    int64_t before = state.durable_bytes_before;
    if (append) done -= before, before = 0;
    sum.bytes_done += std::max<int64_t>(done, 0);
    sum.bytes_before += std::min(before, std::max<int64_t>(done, 0));
    sum.tokens_done += state.token_count;
    sum.tokens_before += state.token_count_before;
    if (!state.waiting_for.ok()) sum.waiting_for = WaitingReason(state.waiting_for);
    if (jobs_[i].bytes && sum.bytes_total) {
      *sum.bytes_total += *jobs_[i].bytes;
    } else {
      sum.bytes_total.reset();
    }
  }
  const auto finished = std::count(done_.begin(), done_.end(), true);
  sum.what = jobs_.size() == 1 ? jobs_[0].document
                               : absl::StrCat(finished, " of ", jobs_.size(), " files");
  progress_.Update(sum, absl::Now());
}

void IngestRun::PrintDone() {
  for (; printed_ < jobs_.size() && done_[printed_]; ++printed_) {
    progress_.Clear();
    PrintJob(jobs_[printed_], outcomes_[printed_]);
  }
  if (printed_ < jobs_.size()) DrawProgress();
}

void IngestRun::PrintJob(const Job& job, const IngestOutcome& outcome) {
  if (session_.json()) return;
  const IngestState& state = outcome.state;
  if (outcome.status.ok()) {
    Print(absl::StrFormat("%s: %s durable, %s visible, %s%s\n", job.document,
                          Counted(state.durable_bytes, "byte", "bytes"),
                          WithCommas(state.visible_bytes),
                          Counted(state.token_count, "token", "tokens"),
                          NothingNew(state, session_.line().Has("--append"))));
    fflush(stdout);
  } else if (jobs_.size() > 1 && !session_.interrupted()) {
    absl::FPrintF(stderr, "mneme: %s: %s\n", EscapeForTerminal(job.path),
                  ErrorMessage(outcome.status, session_.address()));
  }
}

absl::Status IngestRun::Report(std::vector<absl::Status> errors) {
  absl::MutexLock lock(&mutex_);
  progress_.Clear();
  Json documents = Json::array(), failures = Json::array();
  IngestState sum;
  absl::Status first_error;
  size_t failed = errors.size(), succeeded = 0;
  for (const absl::Status& error : errors) {
    failures.push_back(ErrorJson(error, session_.address()));
    if (!session_.json())
      absl::FPrintF(stderr, "mneme: %s\n", ErrorMessage(error, session_.address()));
    first_error.Update(error);
  }
  for (size_t i = 0; i < jobs_.size(); ++i) {
    if (!done_[i]) continue;
    const auto& [status, state] = outcomes_[i];
    if (status.ok() || state.durable_bytes > 0) {
      documents.push_back(
          {{"document", jobs_[i].document},
           {"name", session_.DocumentName(session_.positional(0), jobs_[i].document)},
           {"path", jobs_[i].path},
           {"durable_bytes", state.durable_bytes},
           {"visible_bytes", state.visible_bytes},
           {"tokens", state.token_count},
           {"new_bytes", state.durable_bytes - state.durable_bytes_before}});
    }
    sum.durable_bytes += state.durable_bytes;
    sum.durable_bytes_before += state.durable_bytes_before;
    sum.token_count += state.token_count;
    sum.token_count_before += state.token_count_before;
    if (status.ok()) {
      ++succeeded;
      continue;
    }
    ++failed;
    first_error.Update(status);
    Json error = ErrorJson(status, session_.address());
    error["path"] = jobs_[i].path;
    error["document"] = jobs_[i].document;
    failures.push_back(error);
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begun_);
  if (session_.json()) {
    PrintJson({{"documents", documents}, {"errors", failures}, {"seconds", seconds}});
  } else if (!session_.interrupted() && sum.durable_bytes > sum.durable_bytes_before) {
    const int64_t tokens = sum.token_count - sum.token_count_before;
    absl::FPrintF(
        stderr, "%s, %s in %.1f s (%s tokens/s)\n",
        Counted(sum.durable_bytes - sum.durable_bytes_before, "new byte", "new bytes"),
        Counted(tokens, "token", "tokens"), seconds,
        WithCommas(static_cast<int64_t>(static_cast<double>(tokens) / std::max(seconds, 1e-3))));
  }
  if (first_error.ok() && !session_.interrupted()) return absl::OkStatus();
  if (session_.interrupted()) {
    const std::string where =
        jobs_.size() == 1
            ? absl::StrCat("interrupted with ", WithCommas(sum.durable_bytes), " bytes of ",
                           jobs_[0].document, " durable")
            : absl::StrCat("interrupted after ", succeeded, " of ", jobs_.size(), " files");
    return absl::CancelledError(absl::StrCat(where, "; the same command goes on from there"));
  }
  if (jobs_.size() + errors.size() == 1) return first_error;
  return absl::Status(first_error.code(),
                      absl::StrCat(failed, " of ", jobs_.size() + errors.size(), " files failed"));
}

absl::Status CheckMemory(Session& session) {
  const std::string& memory = session.positional(0);
  auto found = session.client().GetMemory(session.MemoryName(memory), session.call());
  // Creating it helps only where its tenant exists.
  const auto info = ErrorInfoOf(found.status());
  if (!info || info->reason() != "RESOURCE_NOT_FOUND") return found.status();
  absl::Status hint(absl::StatusCode::kNotFound,
                    absl::StrCat(found.status().message(), "; mneme create ", memory, " makes it"));
  found.status().ForEachPayload(
      [&](absl::string_view url, const absl::Cord& detail) { hint.SetPayload(url, detail); });
  return hint;
}

absl::Status Ingest(Session& session) {
  const std::string& path = session.positional(1);
  const std::string document = session.line().Text("--document");
  std::vector<Job> jobs;
  std::vector<absl::Status> errors;
  struct stat info;
  if (path == "-") {
    jobs.push_back({.path = "-", .document = document});
  } else if (stat(path.c_str(), &info) != 0) {
    const std::string message = absl::StrCat(path, ": ", strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message) : absl::UnknownError(message);
  } else if (!S_ISDIR(info.st_mode)) {
    std::string name = path.substr(path.rfind('/') + 1);
    jobs.push_back({.path = path,
                    .document = document.empty() ? DocumentIdForPath(name) : document,
                    .bytes = info.st_size});
  } else {
    ASSIGN_OR_RETURN(IngestFiles found, CollectFiles(path, session.line().Has("--hidden")));
    for (IngestFile& file : found.files)
      jobs.push_back({file.path, file.document, file.bytes, /*check_first=*/true});
    errors = std::move(found.errors);
    if (jobs.empty() && errors.empty())
      return absl::NotFoundError(absl::StrCat(path, ": no file with text below it"));
    if (!session.json() && found.empty + found.hidden + found.special > 0) {
      absl::FPrintF(
          stderr,
          "left out: %d empty, %d hidden (--hidden takes them), %d neither file nor folder\n",
          found.empty, found.hidden, found.special);
    }
  }
  RETURN_IF_ERROR(CheckMemory(session));
  IngestRun run(session, std::move(jobs));
  run.Run(static_cast<int>(session.line().Integer("--concurrency", kConcurrency)));
  return run.Report(std::move(errors));
}

}  // namespace

CommandSpec IngestCommand() {
  return {
      .name = "ingest",
      .summary = "streams a file, a folder or standard input into a memory",
      .positionals =
          {{"M", "the memory; mneme create M makes one"},
           {"FILE|DIR|-",
            "UTF-8 text; a folder is taken with all regular files below it; - is standard input"}},
      .flags = {{"--document", "D",
                 "document id (default: the file's name); needed with -, not for a folder",
                 FlagSpec::Kind::kText},
                {"--append", "",
                 "add to the end of the document instead of comparing with its beginning"},
                {"--seal", "", "no more text ever: the document becomes immutable"},
                TtlFlag("how long a document that this creates lives"),
                {"--no-wait", "", "done when the text is durable, not only when it can be found"},
                {"--hidden", "", "of a folder, also take entries whose names begin with a dot"},
                {"--concurrency", "N", "files of a folder at one time (default: 4)",
                 FlagSpec::Kind::kInteger, 1, 64}},
      .notes =
          "The same ingest again changes nothing; after an interruption it goes on where it "
          "stopped; a file that grew adds\n"
          "what is new; other text under a stored document's name is an error. A broken connection "
          "or a restarted server is\n"
          "waited out for a minute.\n\n"
          "Characters of a file's name that an id may not have become _, folders are parted by ~, "
          "and a name that does not\n"
          "begin with a letter or digit gets doc before it (-dash becomes doc-dash). Files of a "
          "folder that are not UTF-8\n"
          "are reported and left out, the others go on, and the exit status is 1. A single file or "
          "standard input keeps what\n"
          "came before its first bad byte. Symbolic links in a folder are not followed.\n\n"
          "--json: {documents: [{document, name, path, durable_bytes, visible_bytes, tokens, "
          "new_bytes}],\n"
          "errors: [{code, message, reason, metadata, path, document}], seconds}\n\n"
          "examples: mneme ingest demo book.txt\n"
          "          dmesg | mneme ingest logs - --document dmesg\n",
      .path_positional = 1,
      .run = Ingest,
      .check = [](const CommandLine& line) -> absl::Status {
        const std::string& path = line.positionals[1];
        struct stat info;
        if (line.Has("--ttl")) {
          const absl::StatusOr<absl::Duration> ttl = ParseTtl(line.Text("--ttl"));
          if (!ttl.ok()) return ttl.status();
        }
        if (path == "-" && !line.Has("--document")) {
          return absl::InvalidArgumentError(
              "mneme ingest M - needs --document D: standard input has no name");
        }
        if (line.Has("--document") && stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
          return absl::InvalidArgumentError(
              absl::StrCat("--document names one document, but ", path, " is a folder"));
        }
        return absl::OkStatus();
      }};
}

}  // namespace mneme
