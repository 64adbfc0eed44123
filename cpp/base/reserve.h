#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace pagedcore {

// Room for `count` more elements, so that adding them cannot fail. Grows as push_back() does.
template <typename T>
void reserve_more(std::vector<T>& list, std::size_t count) {
  if (list.capacity() - list.size() >= count) return;
  list.reserve(std::max(list.size() + count, 2 * list.capacity()));
}

}  // namespace pagedcore
