// How a table is kept in RocksDB: one column family a table. Text is compressed; pages lie in blob
// files (written once at flush, not again at every compaction); bloom filters serve point reads.

#ifndef MNEME_MEMORY_STORE_ROCKSDB_TABLE_OPTIONS_H_
#define MNEME_MEMORY_STORE_ROCKSDB_TABLE_OPTIONS_H_

#include <memory>

#include <rocksdb/cache.h>
#include <rocksdb/options.h>

#include "memory_store/chunk_store.h"

namespace mneme {

// `block_cache`: shared by the tables of a database, and with RocksDB.
rocksdb::ColumnFamilyOptions TableOptions(Table table,
                                          const std::shared_ptr<rocksdb::Cache>& block_cache);

}  // namespace mneme

#endif  // MNEME_MEMORY_STORE_ROCKSDB_TABLE_OPTIONS_H_
