#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace pagedcore::bench {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The commit of the working directory, "-dirty" behind it if files differ from it.
inline std::string commit() {
  std::string text;
  if (FILE* pipe = popen("git describe --always --dirty --exclude='*' 2>/dev/null", "r")) {
    char buffer[64];
    while (std::fgets(buffer, sizeof(buffer), pipe)) text += buffer;
    pclose(pipe);
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

// The values of "--name=value" arguments.
class Arguments {
 public:
  Arguments(int argc, char** argv) : values_(argv + 1, argv + argc) {}

  std::string text(std::string_view name, std::string_view fallback) const {
    const std::string prefix = "--" + std::string(name) + "=";
    for (const std::string& value : values_) {
      if (value.rfind(prefix, 0) == 0) return value.substr(prefix.size());
    }
    return std::string(fallback);
  }
  int number(std::string_view name, int fallback) const {
    const std::string value = text(name, "");
    return value.empty() ? fallback : std::atoi(value.c_str());
  }
  std::vector<int> numbers(std::string_view name, std::string_view fallback) const {
    std::vector<int> list;
    std::string rest = text(name, fallback);
    for (char* at = rest.data(); *at != '\0';) {
      list.push_back(static_cast<int>(std::strtol(at, &at, 10)));
      if (*at != '\0') ++at;
    }
    return list;
  }

 private:
  std::vector<std::string> values_;
};

}  // namespace pagedcore::bench
