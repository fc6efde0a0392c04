// Anonymous mappings with huge pages asked for: two-thread read bandwidth depends on them by up to 1.4x.
#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace {
constexpr size_t HUGE_PAGE = 2 << 20;
constexpr size_t REGION = 32 << 20;  // small tensors share regions of this size; untouched pages cost nothing
constexpr size_t POPULATED = 256 << 20;
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
}  // namespace

Region::Region(size_t bytes) : size_(round_up(bytes ? bytes : 1, HUGE_PAGE)) {
#if defined(__unix__) || defined(__APPLE__)
  // One huge page more than needed, the ends given back, so that the region starts on a huge page boundary.
  uint8_t *p = (uint8_t *)mmap(nullptr, size_ + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == (uint8_t *)MAP_FAILED) throw std::bad_alloc();
  const size_t head = round_up((size_t)p, HUGE_PAGE) - (size_t)p;
  if (head) munmap(p, head);
  munmap(p + head + size_, HUGE_PAGE - head);
  data_ = p + head;
#if defined(MADV_HUGEPAGE)
  madvise(data_, size_, MADV_HUGEPAGE);
#endif
#else
  data_ = (uint8_t *)std::calloc(1, size_);
  if (!data_) throw std::bad_alloc();
#endif
}

Region::~Region() {
#if defined(__unix__) || defined(__APPLE__)
  munmap(data_, size_);
#else
  std::free(data_);
#endif
}

Arena::Arena(size_t expected) {
  if (!expected) return;
  current_ = std::make_shared<Region>(std::min(expected, POPULATED));
  populating_ = std::thread([this, region = current_] {
    // Atomic, so that what another thread writes at that moment stays. Faults, unlike MADV_POPULATE_WRITE, do not keep the
    // interpreter's own requests for memory waiting.
    for (size_t at = 0; at < region->size() && !stop_; at += HUGE_PAGE) __atomic_fetch_or(region->data() + at, 0, __ATOMIC_RELAXED);
  });
}

Arena::~Arena() {
  stop_ = true;
  if (populating_.joinable()) populating_.join();
}

Span Arena::take(size_t bytes) {
  bytes = round_up(bytes, 64);
  if (!current_ || used_ + bytes > current_->size()) {
    if (bytes > REGION / 2) {
      auto own = std::make_shared<Region>(bytes);
      return {own, own->data()};
    }
    current_ = std::make_shared<Region>(REGION), used_ = 0;
  }
  Span span{current_, current_->data() + used_};
  used_ += bytes;
  return span;
}
