// Big memory: anonymous pages, huge where the system offers them, handed out in order and freed together.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

class Region {  // zero-filled; throws std::bad_alloc
 public:
  explicit Region(size_t bytes);
  ~Region();
  Region(const Region &) = delete;
  uint8_t *data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t *data_;
  size_t size_;
};

struct Span {  // a piece of a region that it keeps alive
  std::shared_ptr<Region> owner;
  uint8_t *data;
};

// Zeroing fresh pages takes as long as packing weights into them. So the pages of what is `expected` are made by a thread of
// the arena's own, up to a bound, while the caller is still reading files.
class Arena {
 public:
  explicit Arena(size_t expected = 0);
  ~Arena();
  Span take(size_t bytes);  // 64-byte aligned
 private:
  std::atomic<bool> stop_{false};
  std::thread populating_;
  std::shared_ptr<Region> current_;
  size_t used_ = 0;
};
