// StoreChecker: reads everything that a store holds and says what is damaged; mends on demand what
// can be mended, while the store serves. First the files below, whose every byte has a checksum,
// then the records: catalog, records that belong to nobody, and of each document its text (order,
// completeness, checksums), its segments (against what is visible) and its pages (against their
// segments). What is derived is mended by deriving it again; damaged text cannot be: its document
// is marked, as when it is read.

#ifndef MNEME_MEMORY_STORE_STORE_CHECKER_H_
#define MNEME_MEMORY_STORE_STORE_CHECKER_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory_store/catalog.h"
#include "memory_store/keys.h"
#include "memory_store/memory_store.h"
#include "memory_store/records.h"

namespace mneme {

// One thing that is wrong. Says where, never what the text is.
struct StoreFinding {
  enum class Kind : uint8_t {
    kFile,     // a file whose bytes are not those that were written
    kCatalog,  // a record of a memory or a document, or the counter
    kText,     // text [byte_begin, byte_end) is damaged or missing
    kSegment,  // a segment's record
    kPage,     // pages of a segment
    kOrphan,   // records of a document that the catalog does not know
  };
  static constexpr int kKindCount = 6;

  Kind kind = Kind::kFile;
  // 0 and empty where they do not apply, or are not known. `memory`: that it was written into.
  MemoryId memory{};
  DocumentId document{};
  // Of a memory that has the document: the one that is checked, else the oldest.
  std::string tenant;
  std::string memory_id;
  std::string document_id;
  int64_t segment_index = -1;
  int64_t byte_begin = 0;  // of the document's text
  int64_t byte_end = 0;
  std::string file;
  std::string what;
  bool healed = false;
};
const char* StoreFindingKindName(StoreFinding::Kind kind);

struct StoreCheckReport {
  static constexpr size_t kFindingsMax = 1000;
  struct Read {
    int64_t count = 0;
    int64_t bytes = 0;
  };

  Read files;
  std::array<Read, kTableCount> records;
  int64_t documents = 0;
  int64_t segments_without_pages = 0;  // none is stored: derived when needed
  std::vector<StoreFinding> findings;  // the first kFindingsMax
  std::array<int64_t, StoreFinding::kKindCount> found{};
  std::array<int64_t, StoreFinding::kKindCount> healed{};

  int64_t bytes_read() const;
  int64_t found_count() const;
  int64_t healed_count() const;
};

struct StoreCheckOptions {
  // Called after every piece of work, at least once a MiB read; it may sleep. An error ends the
  // check and is its result.
  std::function<absl::Status(const StoreCheckReport& so_far)> step;
  // Only the documents of this one, those that it shares included and whole; nothing: all, and
  // files, catalog and what belongs to nobody.
  std::optional<MemoryId> memory;
  // Mends what can be mended.
  bool heal = false;
  // With `heal`: gives up text that cannot be read in a damaged file, so that the file can be
  // written anew. Without: the file stays, in case its disk comes to its senses.
  bool give_up_text = false;
  // With `heal`: derives a segment again and puts it in its place (MemoryStore::RestoreSegment),
  // its pages too if they are kept.
  std::function<absl::Status(DocumentId, int64_t segment_index, bool with_pages)> derive;
};

// Thread-compatible. Borrows the store, which others may use meanwhile.
class StoreChecker {
 public:
  StoreChecker(MemoryStore& store, StoreCheckOptions options);

  // Errors are those of `step`, and of the store when it cannot be read for another reason than
  // damage.
  absl::StatusOr<StoreCheckReport> Run();

 private:
  struct DocumentNow;  // what the catalog says of a document at one moment
  struct SegmentState;

  absl::Status Step();
  void Count(Table table, int64_t bytes);
  void Add(StoreFinding finding);
  // The documents to be checked, oldest first.
  std::vector<DocumentId> Documents() const;
  // Puts the names of the finding's document into it, as far as they are known.
  void Name(StoreFinding* finding) const;

  absl::Status CheckFiles();
  // Files that can be mended only once the records in them have been written anew.
  absl::Status MendBlobFiles();
  absl::Status CheckCatalog();
  absl::Status CheckOrphans(Table table);
  absl::Status CheckDocument(DocumentId document);
  absl::Status CheckText(DocumentNow document);
  // Of a document whose newest text could not be read when the store was opened: when it can be
  // now, tells where the text ends (with `heal` the catalog too). DATA_LOSS: it cannot.
  absl::Status ReadNewestText(DocumentNow* document);
  // What is wrong with the text up to durable_bytes, newest first.
  absl::Status WalkText(const DocumentNow& document, std::vector<StoreFinding>* findings);
  // A document that is marked as damaged, but whose text is whole.
  void AddReadableAgain(const DocumentNow& document);
  // The end of the last piece of text at or below byte `unreadable` that can be read; 0: none.
  int64_t FindReadableText(const DocumentKey& key, int64_t unreadable);
  absl::Status CheckSegment(DocumentId document, int64_t segment_index, bool* exists);
  // Reads a segment and its pages, and compares them with the catalog.
  absl::StatusOr<SegmentState> ReadSegment(const DocumentNow& document, int64_t segment_index);

  bool Find(DocumentId document, int64_t segment_index, DocumentNow* now) const;

  MemoryStore& store_;
  MemoryStore::Impl& impl_;
  const StoreCheckOptions options_;
  StoreCheckReport report_;
  std::vector<StoreFile> blob_files_;  // damaged
};

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_STORE_CHECKER_H_
