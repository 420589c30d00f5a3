// The keys of each section of the configuration, in the order in which they are printed.

#ifndef MNEME_SERVER_CONFIG_SECTIONS_H_
#define MNEME_SERVER_CONFIG_SECTIONS_H_

#include <vector>

#include "server/config.h"

namespace mneme {

std::vector<ConfigKey> ServerSection();
std::vector<ConfigKey> ModelSection();
std::vector<ConfigKey> StoreSection();
std::vector<ConfigKey> EngineSection();
std::vector<ConfigKey> QuotaSection();

}  // namespace mneme

#endif  // MNEME_SERVER_CONFIG_SECTIONS_H_
