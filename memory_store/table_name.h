// Names of the tables of a ChunkStore, for people and for whatever stores them by name: column
// families, labels of metrics, reports.

#ifndef MNEME_MEMORY_STORE_TABLE_NAME_H_
#define MNEME_MEMORY_STORE_TABLE_NAME_H_

#include <array>
#include <cstddef>

#include "memory_store/chunk_store.h"

namespace mneme {

// In the order of Table. They are on disk (docs/storage_format.md, "Tables").
inline constexpr std::array<const char*, kTableCount> kTableNames = {"catalog", "text", "segments",
                                                                     "pages"};

inline const char* TableName(Table table) { return kTableNames[static_cast<size_t>(table)]; }

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_TABLE_NAME_H_
