// The configuration as YAML: what --config reads and --print-config writes.

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <yaml-cpp/yaml.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "common/utf8.h"
#include "server/config.h"

namespace mneme {
namespace {

// A map of maps of scalars as OUTER.INNER=VALUE, joined by commas.
absl::StatusOr<std::string> YamlMap(const YAML::Node& node, const ConfigKey& key,
                                    absl::string_view where) {
  const auto refuse = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": ", key.full_name(), ": not a map of maps of plain values without commas"));
  };
  std::vector<std::string> items;
  std::set<std::string> seen;
  for (const auto& outer : node) {
    if (!outer.first.IsScalar() || !outer.second.IsMap()) return refuse();
    if (!seen.insert(outer.first.Scalar()).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": ", key.full_name(), ": \"", outer.first.Scalar(), "\" stands there twice"));
    }
    for (const auto& inner : outer.second) {
      if (!inner.first.IsScalar() || !inner.second.IsScalar()) return refuse();
      items.push_back(absl::StrCat(outer.first.Scalar(), ".", inner.first.Scalar(), "=",
                                   inner.second.Scalar()));
      if (absl::StrContains(items.back(), ',')) return refuse();
    }
  }
  return absl::StrJoin(items, ",");
}

// A scalar, or a sequence of scalars joined by commas.
absl::StatusOr<std::string> YamlValue(const YAML::Node& node, const ConfigKey& key,
                                      absl::string_view where) {
  if (node.IsScalar()) return node.Scalar();
  if (node.IsNull() && (key.type == ConfigKey::Type::kText || key.type == ConfigKey::Type::kMap))
    return std::string();
  if (node.IsMap() && key.type == ConfigKey::Type::kMap) return YamlMap(node, key, where);
  if (node.IsSequence() && key.type == ConfigKey::Type::kList) {
    std::vector<std::string> items;
    for (const YAML::Node& item : node) {
      if (!item.IsScalar()) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": ", key.full_name(), ": not a list of plain values"));
      }
      items.push_back(item.Scalar());
    }
    return absl::StrJoin(items, ",");
  }
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": ", key.full_name(), ": not a plain value: ", key.allowed));
}

absl::Status ApplyYamlNode(const YAML::Node& root, absl::string_view source, ServerConfig* config) {
  const auto where = [source](const YAML::Node& node) {
    return absl::StrCat(source, ":", node.Mark().line + 1);
  };
  if (root.IsNull()) return absl::OkStatus();
  if (!root.IsMap()) {
    return absl::InvalidArgumentError(absl::StrCat(where(root), ": not a map of sections"));
  }
  std::set<std::string> sections, seen_sections, seen;
  for (const ConfigKey& key : ConfigKeys()) sections.insert(key.section);
  for (const auto& section : root) {
    const std::string section_name = section.first.IsScalar() ? section.first.Scalar() : "";
    if (!sections.contains(section_name)) {
      return absl::InvalidArgumentError(absl::StrCat(where(section.first), ": unknown section \"",
                                                     section_name,
                                                     "\": ", absl::StrJoin(sections, ", ")));
    }
    if (!seen_sections.insert(section_name).second) {
      return absl::InvalidArgumentError(absl::StrCat(where(section.first), ": section \"",
                                                     section_name, "\" stands there twice"));
    }
    if (section.second.IsNull()) continue;
    if (!section.second.IsMap()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where(section.second), ": section ", section_name, " is not a map of keys"));
    }
    for (const auto& entry : section.second) {
      const std::string name =
          absl::StrCat(section_name, ".", entry.first.IsScalar() ? entry.first.Scalar() : "");
      const ConfigKey* key = FindKey(name);
      if (key == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrCat(where(entry.first), ": unknown key \"", name, "\""));
      }
      if (!seen.insert(name).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(where(entry.first), ": key \"", name, "\" is set twice"));
      }
      ASSIGN_OR_RETURN(const std::string value, YamlValue(entry.second, *key, where(entry.second)));
      RETURN_IF_ERROR(SetKey(*key, value, where(entry.second), config));
    }
  }
  return absl::OkStatus();
}

// What YamlMap takes back.
void EmitMap(const std::string& value, YAML::Emitter* out) {
  std::map<std::string, std::vector<std::pair<std::string, std::string>>> outer;
  for (absl::string_view item : absl::StrSplit(value, ',', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> sides = absl::StrSplit(item, absl::MaxSplits('=', 1));
    const size_t dot = sides.first.rfind('.');
    outer[sides.first.substr(0, dot)].emplace_back(sides.first.substr(dot + 1), sides.second);
  }
  *out << YAML::BeginMap;
  for (const auto& [name, entries] : outer) {
    *out << YAML::Key << name << YAML::Value << YAML::BeginMap;
    for (const auto& [key, text] : entries) *out << YAML::Key << key << YAML::Value << text;
    *out << YAML::EndMap;
  }
  *out << YAML::EndMap;
}

}  // namespace

absl::Status ApplyYaml(absl::string_view yaml, absl::string_view source, ServerConfig* config) {
  const size_t valid_bytes = ValidUtf8Prefix(yaml).valid_bytes;
  if (valid_bytes < yaml.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": not valid UTF-8 at byte ", valid_bytes));
  }
  try {  // yaml-cpp reports by exception
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(yaml));
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(source, ":", documents[1].Mark().line + 1,
                       ": a second YAML document (after \"---\"): a configuration has one"));
    }
    return documents.empty() ? absl::OkStatus() : ApplyYamlNode(documents[0], source, config);
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ":", e.mark.line + 1, ": not YAML: ", e.msg));
  }
}

std::string ToYaml(const ServerConfig& config) {
  YAML::Emitter out;
  out << YAML::BeginMap;
  std::string section;
  for (const ConfigKey& key : ConfigKeys()) {
    if (key.section != section) {
      if (!section.empty()) out << YAML::EndMap;
      section = key.section;
      out << YAML::Key << section << YAML::Value << YAML::BeginMap;
    }
    const std::string value = key.get(config);
    out << YAML::Key << key.name << YAML::Value;
    if (key.type == ConfigKey::Type::kList) {
      out << YAML::Flow << YAML::BeginSeq;
      for (absl::string_view item : absl::StrSplit(value, ',')) out << std::string(item);
      out << YAML::EndSeq;
    } else if (key.type == ConfigKey::Type::kMap) {
      EmitMap(value, &out);
    } else {
      out << value;
    }
  }
  out << YAML::EndMap << YAML::EndMap;
  return absl::StrCat(out.c_str(), "\n");
}

}  // namespace mneme
