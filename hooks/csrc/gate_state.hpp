// What is so at a low-priority job's gate: its words, its limits, its streams and what is enqueued on them. It decides
// nothing, and nobody waits here: how an op waits is gate.hpp's, whether ops come by at all standby.hpp's.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "cuda_driver.hpp"
#include "pace.hpp"
#include "table.hpp"

namespace herald {

class GateState {
 public:
  static constexpr uint32_t kMostCudaDevices = 16;
  static constexpr uint32_t kLanes = 64;
  static constexpr uint64_t kProgressBytes = (kLanes + 1) * sizeof(uint32_t);  // and one for drains

  GateState(TableView table, uint32_t row) : table_(table), row_(table.row(row)) {}

  JobRow& row() const { return row_; }
  const TableView& table() const { return table_; }
  bool is_cuda() const { return cuda_ != nullptr; }
  bool is_active() const { return active_.load(std::memory_order_acquire); }

  // CUDA: where device `index` finds its gate word and its progress words (kProgressBytes, host and device).
  void set_cuda(const CudaDriver* cuda, a32* progress, uint64_t progress_device) {
    cuda_ = cuda;
    progress_ = progress;
    progress_device_ = progress_device;
  }
  void set_device(uint32_t index, uint32_t slot, uint64_t word_device) {
    slots_[index] = slot;
    words_device_[index] = word_device;
  }
  void use_host_slot(uint32_t slot) { slots_[0] = slot; }

  // Without MPS contexts take turns anyway, so that nothing may run beside a request: light ops count as heavy.
  void set_all_heavy(bool all_heavy) { all_heavy_ = all_heavy; }
  bool all_heavy() const { return all_heavy_; }

  // Whether someone could close the gate of one of its devices.
  bool is_attached() const {
    if (!cuda_) return table_.attached(slots_[0]).load(std::memory_order_seq_cst) != 0;
    for (uint32_t i = 0; i < kMostCudaDevices; ++i) {
      if (words_device_[i] && table_.attached(slots_[i]).load(std::memory_order_seq_cst) != 0) return true;
    }
    return false;
  }

  // What a close changes.
  const a32& word() const { return table_.gate(slot(), kClassHeavy); }
  bool is_closed() const { return word().load(std::memory_order_acquire) != 0; }
  DeviceHold& hold() const { return table_.hold(slot()); }

  // A limit is the daemon's, and goes with it: a dead one limits nobody.
  bool is_limited() const {
    if (!row_.rate_ppm.load(std::memory_order_relaxed) && !row_.ahead_ns.load(std::memory_order_relaxed)) return false;
    const auto beat = static_cast<int64_t>(table_.header().daemon_heartbeat_ns.load(std::memory_order_relaxed));
    return now_ns() - beat < kWedgedNs;
  }

  bool is_capturing() const { return captures_.load(std::memory_order_acquire) > 0; }
  void begin_capture() { captures_.fetch_add(1, std::memory_order_acq_rel); }
  void end_capture() {  // perhaps of a graph that was begun before this gate was there
    int open = captures_.load(std::memory_order_acquire);
    while (open > 0 && !captures_.compare_exchange_weak(open, open - 1)) {
    }
  }

  // All that was let through.
  Work counted() const {
    return {row_.gated_ns.load(std::memory_order_relaxed), row_.light_ns.load(std::memory_order_relaxed)};
  }

  // What a closing gate cannot stop: an op of so long. For the threads of ops.
  void tell_stretch(uint64_t ns) {
    if (ns <= longest_op_ns_.load(std::memory_order_relaxed)) return;
    longest_op_ns_.store(ns);
    publish_stretch();
  }

  // Likewise: after a close, what was queued ran on for so long. A host that stalls once says little of the closes to
  // come, so that the longest is forgotten bit by bit. For one thread.
  void tell_drain(uint64_t ns) {
    const uint64_t longest = longest_drain_ns_.load(std::memory_order_relaxed);
    longest_drain_ns_.store(std::max(ns, longest - longest / kForgetsAfter));
    publish_stretch();
  }

  // From now on ops come by, and nothing is left to drain but them.
  void forget_drains() {
    if (longest_drain_ns_.exchange(0) != 0) publish_stretch();
  }

  bool has_backlog() const {
    for (size_t i = 0; progress_ && i < kLanes && lanes_[i].stream.load(std::memory_order_acquire) != 0; ++i) {
      const uint32_t done_us = progress_[i].load(std::memory_order_relaxed);
      if (done_us != static_cast<uint32_t>(lanes_[i].written_us.load(std::memory_order_relaxed))) return true;
    }
    return false;
  }

  // The number of the drain whose end a stream has marked last.
  uint32_t drained() const { return progress_[kLanes].load(std::memory_order_acquire); }

  // Whether all its ops run on one device, and nobody could close the gate of another one.
  bool uses_one_device() const {
    const uint32_t device = lanes_[0].device.load(std::memory_order_relaxed);
    for (uint32_t i = 0; i < kMostCudaDevices; ++i) {
      if (i != device && words_device_[i] && table_.attached(slots_[i]).load(std::memory_order_relaxed)) return false;
    }
    return lanes_[0].stream.load(std::memory_order_acquire) != 0 &&
           std::all_of(lanes_.begin(), lanes_.end(), [&](const Lane& lane) {
             return lane.stream.load(std::memory_order_acquire) == 0 ||
                    lane.device.load(std::memory_order_relaxed) == device;
           });
  }

  // The next op of every stream waits.
  void end_quanta() {
    for (Lane& lane : lanes_) lane.since_wait_ns.store(INT64_MAX / 2, std::memory_order_relaxed);
  }

 protected:  // for the gate, through which the ops go
  // Bookkeeping of one (device, stream). Relaxed atomics: two threads on one stream are rare and may lose a count.
  struct Lane {
    std::atomic<uint64_t> stream{0};  // stream handle + 1; 0: free
    std::atomic<uint32_t> device{0};
    std::atomic<int64_t> since_wait_ns{INT64_MAX / 2};  // a stream's first op waits
    std::atomic<uint64_t> capture_id{0};  // the graph its last op went into; 0: none
    std::atomic<uint64_t> enqueued_ns{0};
    std::atomic<uint64_t> written_us{0};
  };

  Lane* lane_of(uint32_t device, CudaStream stream) {
    const uint64_t wanted = reinterpret_cast<uint64_t>(stream) + 1;
    for (Lane& lane : lanes_) {
      uint64_t found = lane.stream.load(std::memory_order_acquire);
      if (found == 0 && lane.stream.compare_exchange_strong(found, wanted)) {
        lane.device.store(device, std::memory_order_relaxed);
        found = wanted;
      }
      if (found == wanted && lane.device.load(std::memory_order_relaxed) == device) return &lane;
    }
    return &lanes_[kLanes - 1];
  }

  // The slot of the device that its ops run on; of several devices, of any.
  uint32_t slot() const { return cuda_ ? slots_[lanes_[0].device.load(std::memory_order_relaxed)] : slots_[0]; }

  TableView table_;
  JobRow& row_;
  const CudaDriver* cuda_ = nullptr;
  a32* progress_ = nullptr;
  uint64_t progress_device_ = 0;
  std::array<uint32_t, kMostCudaDevices> slots_{};
  std::array<uint64_t, kMostCudaDevices> words_device_{};
  std::array<Lane, kLanes> lanes_;
  std::atomic<bool> active_{true};
  std::atomic<int> captures_{0};
  bool all_heavy_ = false;

 private:
  static constexpr uint64_t kForgetsAfter = 64;  // closes, by two thirds

  // The row has two sources: whoever stores the older of two answers sees that it is, and stores again.
  void publish_stretch() {
    const auto longest = [this] { return std::max(longest_op_ns_.load(), longest_drain_ns_.load()); };
    for (uint64_t ns = longest(); row_.longest_op_ns.exchange(ns) != ns || ns != longest(); ns = longest()) {
    }
  }

  std::atomic<uint64_t> longest_op_ns_{0};
  std::atomic<uint64_t> longest_drain_ns_{0};
};

}  // namespace herald
