// How much of the device's time passed the gate, measured: what no op event announced (a kernel launched by hand, say)
// is invisible to every counter of ops, but not to the clock of the stream.
//
// A sample is some milliseconds of a stream, timed by two events. It counts only if the stream had a backlog all the
// while, so that it was never idle, and if the gate was open: then its time, less that of the ops that passed, is unseen
// work. Ops call each other, so that work is not enqueued in quite the order in which it is counted; over many samples
// that evens out.
#pragma once

#include <atomic>
#include <cstdint>

#include "cuda_driver.hpp"
#include "table.hpp"

namespace herald {

class CoverageSampler {
 public:
  static constexpr int64_t kClosed = -1;

  // After a wait was enqueued on `stream`. `passed_ns`: predicted device time let through so far. `backlog`: the word
  // into which the stream writes its progress, of which `written` was enqueued last. `opened_ns`: when the gate was
  // last opened, kClosed while it is closed.
  void after_wait(const CudaDriver& cuda, CudaStream stream, uint64_t passed_ns, const a32& backlog, uint32_t written,
                  int64_t opened_ns) {
    if (busy_.exchange(true, std::memory_order_acquire)) return;  // another thread is at it
    if (state_ == kReady) read(cuda, opened_ns);
    if (state_ == kIdle && opened_ns != kClosed && passed_ns >= next_ns_ && behind(backlog, written) && create(cuda) &&
        cuda.event_record(events_[0], stream) == 0) {
      stream_ = stream;
      passed_ns_ = passed_ns;
      // Not in step with the iterations of the training: each time elsewhere in them.
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      next_ns_ = passed_ns + kSampleNs + (random_ >> 33) % kEveryNs;
      opened_ns_ = opened_ns;
      unknown_ = row_.ops_unknown.load(std::memory_order_relaxed);
      written_ = written;
      state_ = kOpen;
    }
    busy_.store(false, std::memory_order_release);
  }

  // Before the next wait is enqueued on `stream`.
  void before_wait(const CudaDriver& cuda, CudaStream stream, uint64_t passed_ns, const a32& backlog) {
    if (busy_.exchange(true, std::memory_order_acquire)) return;
    if (state_ == kOpen && stream == stream_ && passed_ns - passed_ns_ >= kSampleNs) {
      // An op of unknown time passed the gate, too, but how much that was nobody can say.
      const bool known = row_.ops_unknown.load(std::memory_order_relaxed) == unknown_;
      const bool kept = known && behind(backlog, written_) && cuda.event_record(events_[1], stream) == 0;
      passed_ns_ = passed_ns - passed_ns_;
      state_ = kept ? kReady : kIdle;
    }
    busy_.store(false, std::memory_order_release);
  }

  explicit CoverageSampler(JobRow& row) : row_(row) {}

 private:
  static constexpr uint64_t kSampleNs = 5'000'000;   // of predicted device time
  static constexpr uint64_t kEveryNs = 20'000'000;   // the longest from the end of one to the begin of the next
  static constexpr int64_t kEmptyPairNs = 1'500;    // adjacent event records read this far apart (H200, driver 580)

  enum State : uint8_t { kIdle, kOpen, kReady };

  static bool behind(const a32& word, uint32_t written) {
    return static_cast<int32_t>(written - word.load(std::memory_order_acquire)) > 0;
  }

  bool create(const CudaDriver& cuda) {
    if (events_[1]) return true;
    const CudaDriver::RelaxedCapture relaxed(cuda);
    return cuda.event_create(&events_[0], 0) == 0 && cuda.event_create(&events_[1], 0) == 0;
  }

  void read(const CudaDriver& cuda, int64_t opened_ns) {
    const CudaDriver::RelaxedCapture relaxed(cuda);
    if (cuda.event_query(events_[1]) != 0) return;
    state_ = kIdle;
    if (opened_ns == kClosed || opened_ns != opened_ns_) return;  // it was closed meanwhile
    float ms = 0;
    if (cuda.event_elapsed(&ms, events_[0], events_[1]) != 0) return;
    const int64_t measured = static_cast<int64_t>(ms * 1e6) - kEmptyPairNs;
    if (measured <= 0) return;
    row_.sampled_ns.fetch_add(static_cast<uint64_t>(measured), std::memory_order_relaxed);
    row_.covered_ns.fetch_add(passed_ns_, std::memory_order_relaxed);
  }

  JobRow& row_;
  std::atomic<bool> busy_{false};
  State state_ = kIdle;
  CudaEvent events_[2] = {};
  CudaStream stream_ = nullptr;
  uint64_t passed_ns_ = 0;
  uint64_t next_ns_ = kEveryNs;
  uint64_t unknown_ = 0;
  uint64_t random_ = 0;
  int64_t opened_ns_ = 0;
  uint32_t written_ = 0;
};

}  // namespace herald
