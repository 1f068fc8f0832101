// Records every op event of a process: where it began and ended on the host, what device time it had of its own.
//
// Device time comes from CUDA events at the borders between ops ("boundaries"): one event per op that has work, not a
// pair, and none at the borders of ops that are known to have none. They are read in batches once they have passed, so
// that nothing is synchronised. Torch-free; ophook.cpp feeds it, recorder.cpp does the work.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "costs.hpp"
#include "cuda_driver.hpp"
#include "mutex.hpp"
#include "table.hpp"

namespace herald {

// One op event. hooks/recorder.py reads the same layout.
struct RecordedEvent {
  int32_t signature;
  int32_t parent;  // place in the same thread's tape, made global when tapes are merged; -1: none
  uint32_t thread;
  uint8_t scope;
  int8_t device;
  uint16_t timed;  // CUDA: 1 where `self_ns` was measured, which nothing is that goes into a graph
  int64_t begin_ns;
  int64_t end_ns;
  int64_t self_ns;
  int64_t sequence;
  uint32_t first_tensor;
  uint16_t num_in;
  uint16_t num_out;
};
static_assert(sizeof(RecordedEvent) == 56);

struct RecordedTensor {
  uint64_t storage;
  uint64_t bytes;
  uint64_t storage_bytes;
  int32_t argument;  // place among the op's inputs; -1: an output
  uint32_t reserved;
};

enum RecordedScope : uint8_t { kScopeFunction = 0, kScopeBackward = 1, kScopeUser = 2, kScopeMark = 3 };

// The events of one thread.
struct Tape {
  struct Open {
    const void* event;  // the RecordFunction; null: a mark
    int32_t index;
    int64_t children_ns;
  };

  explicit Tape(uint32_t number) : thread(number) { events.reserve(1 << 14); }

  const uint32_t thread;
  std::vector<RecordedEvent> events;
  std::vector<Signature*> signatures;  // of the events, by place
  std::vector<RecordedTensor> tensors;
  struct Inputs {
    std::vector<RecordedTensor> tensors;
    std::string args;
  };
  std::vector<Inputs> inputs;  // in detail: of open events, since torch's are gone when they end
  std::vector<Open> stack;

  void add_tensors(int32_t index, const std::vector<RecordedTensor>& in, const std::vector<RecordedTensor>& out) {
    RecordedEvent& e = events[static_cast<size_t>(index)];
    e.first_tensor = static_cast<uint32_t>(tensors.size());
    e.num_in = static_cast<uint16_t>(in.size());
    e.num_out = static_cast<uint16_t>(out.size());
    tensors.insert(tensors.end(), in.begin(), in.end());
    tensors.insert(tensors.end(), out.begin(), out.end());
  }
};

class StreamTape;

// One recording: the tapes of all threads that ran ops meanwhile.
class Recorder {
 public:
  // `cuda` null: wall time on the CPU. `known`: signatures of this and earlier recordings; those that are known to have
  // no work of their own get no boundaries.
  Recorder(const CudaDriver* cuda, Costs* known, bool detail);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  bool is_cuda() const { return cuda_ != nullptr; }
  bool detail() const { return detail_; }
  Costs& known() { return *known_; }

  Tape* new_tape();
  void begin(Tape& tape, const void* event, Signature* signature, RecordedScope scope, int device, int64_t sequence);

  // The innermost open event ends, if it is this one; its place in the tape, or -1.
  int32_t end(Tape& tape, const void* event);

  // After recording, the device idle: reads what is left and tells apart who has work of its own.
  void finish();

  const std::vector<std::unique_ptr<Tape>>& tapes() const { return tapes_; }

 private:
  bool has_work(const Tape& tape, int32_t index) const;
  void boundary(Tape* tape, int32_t owner, int device);
  StreamTape& stream_of(int device);
  StreamTape* find(CudaStream stream, int device, size_t from, size_t to) const;
  void close(Tape& tape);

  static constexpr size_t kMostStreams = 64;

  const CudaDriver* const cuda_;
  Costs* const known_;
  const bool detail_;
  Mutex mutex_;
  std::vector<std::unique_ptr<Tape>> tapes_;
  std::unique_ptr<StreamTape> streams_[kMostStreams];
  std::atomic<size_t> num_streams_{0};
};

}  // namespace herald
