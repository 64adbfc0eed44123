#include "pagedcore/backend.h"

#include "pagedcore/error.h"

namespace pagedcore {

Buffer::Buffer(Backend& backend, std::int64_t bytes)
    : backend_(&backend), data_(backend.do_allocate(bytes)), bytes_(bytes) {
  backend.allocated_bytes_ += bytes;
}

Buffer::~Buffer() {
  if (backend_ == nullptr) return;
  backend_->do_free(data_);
  backend_->allocated_bytes_ -= bytes_;
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(backend_, other.backend_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Backend::run(const ForwardBatch&, const std::function<void()>& forward) { forward(); }

}  // namespace pagedcore
