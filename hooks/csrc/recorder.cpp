// How a recording measures: boundaries on streams, read once they have passed.
#include "recorder.hpp"

#include <algorithm>
#include <deque>

#include "table.hpp"

namespace herald {

// The boundaries of one CUDA stream, in the order of the stream. Threads share a stream: forward and backward do.
class StreamTape {
 public:
  StreamTape(const CudaDriver& cuda, int device, CudaStream stream) : stream(stream), device(device), cuda_(cuda) {}

  const CudaStream stream;
  const int device;

  // What was enqueued since the last boundary is the work of `owner` (an event of `tape`; null: of no op).
  void mark(Tape* tape, int32_t owner) {
    const CudaDriver::InContext context(cuda_, device);
    Guard guard(mutex_);
    if (cuda_.capture_id(stream)) return;  // an event in a graph is not a time
    const CudaEvent event = take();
    cuda_.event_record(event, stream);
    boundaries_.push_back({event, tape, owner});
  }

  // Reads all boundaries. The stream must have drained, and nobody may write into the tapes any more.
  void finish() {
    const CudaDriver::InContext context(cuda_, device);
    Guard guard(mutex_);
    while (boundaries_.size() > 1 && read_front()) {
    }
    for (const Measured& m : measured_) {
      RecordedEvent& e = m.tape->events[static_cast<size_t>(m.owner)];
      e.timed = 1;
      e.self_ns += std::max<int64_t>(0, m.ns);
    }
    measured_.clear();
    for (const Boundary& b : boundaries_) spare_.push_back(b.event);
    boundaries_.clear();
  }

 private:
  static constexpr size_t kMostWaiting = 8192;  // then passed ones are read while recording goes on

  struct Boundary {
    CudaEvent event;
    Tape* tape;
    int32_t owner;
  };

  struct Measured {
    Tape* tape;
    int32_t owner;
    int64_t ns;
  };

  CudaEvent take() {
    if (!spare_.empty()) return take_spare();
    const CudaDriver::RelaxedCapture relaxed(cuda_);
    if (boundaries_.size() >= kMostWaiting) {
      while (spare_.size() < kMostWaiting / 2 && read_front()) {
      }
      if (!spare_.empty()) return take_spare();
    }
    CudaEvent event = nullptr;
    cuda_.event_create(&event, 0);
    return event;
  }

  CudaEvent take_spare() {
    const CudaEvent event = spare_.back();
    spare_.pop_back();
    return event;
  }

  // The time between the two oldest boundaries goes to the owner of the second. False when it has not passed yet.
  bool read_front() {
    if (boundaries_.size() < 2) return false;
    const Boundary& end = boundaries_[1];
    if (cuda_.event_query(end.event) != 0) return false;
    float ms = 0;
    if (end.tape && cuda_.event_elapsed(&ms, boundaries_[0].event, end.event) == 0) {
      // Not into the event yet: its thread may be adding others to the tape, which moves them all.
      measured_.push_back({end.tape, end.owner, static_cast<int64_t>(ms * 1e6) - kBoundaryNs});
    }
    spare_.push_back(boundaries_[0].event);
    boundaries_.pop_front();
    return true;
  }

  // Two adjacent event records read about this far apart with nothing between them (H200, driver 580).
  static constexpr int64_t kBoundaryNs = 1'500;

  const CudaDriver& cuda_;
  Mutex mutex_;
  std::deque<Boundary> boundaries_;
  std::vector<CudaEvent> spare_;
  std::vector<Measured> measured_;
};

Recorder::Recorder(const CudaDriver* cuda, Costs* known, bool detail) : cuda_(cuda), known_(known), detail_(detail) {}

Recorder::~Recorder() = default;

Tape* Recorder::new_tape() {
  Guard guard(mutex_);
  tapes_.push_back(std::make_unique<Tape>(static_cast<uint32_t>(tapes_.size())));
  return tapes_.back().get();
}

void Recorder::begin(Tape& tape, const void* event, Signature* signature, RecordedScope scope, int device,
                     int64_t sequence) {
  const int32_t parent = tape.stack.empty() ? -1 : tape.stack.back().index;
  if (cuda_) {
    if (parent >= 0 && has_work(tape, parent)) {
      // It may have enqueued some before it calls this op.
      boundary(&tape, parent, tape.events[static_cast<size_t>(parent)].device);
    } else if (scope == kScopeMark) {
      // What came before a mark is nobody's: an iteration begins here.
      for (size_t i = 0; i < num_streams_.load(std::memory_order_acquire); ++i) streams_[i]->mark(nullptr, -1);
    } else if (device >= 0) {
      stream_of(device);  // a stream's first op begins at a boundary
    }
  }
  const auto index = static_cast<int32_t>(tape.events.size());
  const auto place = signature ? static_cast<int32_t>(signature->text.load(std::memory_order_relaxed)) : -1;
  tape.events.push_back({place, parent, tape.thread, scope, static_cast<int8_t>(device), 0, now_ns(), 0, 0, sequence, 0, 0, 0});
  tape.signatures.push_back(signature);
  tape.stack.push_back({event, index, 0});
}

int32_t Recorder::end(Tape& tape, const void* event) {
  if (tape.stack.empty() || tape.stack.back().event != event) return -1;
  const int64_t now = now_ns();
  const Tape::Open open = tape.stack.back();
  tape.stack.pop_back();
  RecordedEvent& e = tape.events[static_cast<size_t>(open.index)];
  e.end_ns = now;
  const int64_t total = now - e.begin_ns;
  if (!tape.stack.empty()) tape.stack.back().children_ns += total;
  if (!cuda_) {
    e.self_ns = total - open.children_ns;
  } else if (has_work(tape, open.index)) {
    boundary(&tape, open.index, e.device);
  }
  return open.index;
}

void Recorder::finish() {
  Guard guard(mutex_);
  for (size_t i = 0; i < num_streams_.load(std::memory_order_acquire); ++i) streams_[i]->finish();
  for (auto& tape : tapes_) close(*tape);
}

bool Recorder::has_work(const Tape& tape, int32_t index) const {
  const Signature* s = tape.signatures[static_cast<size_t>(index)];
  return s && tape.events[static_cast<size_t>(index)].device >= 0 && s->kind.load(std::memory_order_relaxed) != kNone;
}

void Recorder::boundary(Tape* tape, int32_t owner, int device) { stream_of(device).mark(tape, owner); }

StreamTape* Recorder::find(CudaStream stream, int device, size_t from, size_t to) const {
  for (size_t i = from; i < to; ++i) {
    if (streams_[i]->stream == stream && streams_[i]->device == device) return streams_[i].get();
  }
  return nullptr;
}

StreamTape& Recorder::stream_of(int device) {
  CudaStream stream = nullptr;
  {
    const CudaDriver::InContext context(*cuda_, device);
    stream = cuda_->current_stream(device);
  }
  size_t n = num_streams_.load(std::memory_order_acquire);
  if (StreamTape* known = find(stream, device, 0, n)) return *known;
  Guard guard(mutex_);
  const size_t seen = n;
  n = num_streams_.load(std::memory_order_relaxed);
  if (StreamTape* known = find(stream, device, seen, n)) return *known;  // another thread was faster
  if (n == kMostStreams) return *streams_[n - 1];
  streams_[n] = std::make_unique<StreamTape>(*cuda_, device, stream);
  streams_[n]->mark(nullptr, -1);
  num_streams_.store(n + 1, std::memory_order_release);
  return *streams_[n];
}

void Recorder::close(Tape& tape) {
  const int64_t now = now_ns();
  for (size_t i = 0; i < tape.events.size(); ++i) {
    RecordedEvent& e = tape.events[i];
    if (e.end_ns == 0) {
      e.end_ns = now;  // still open when recording stopped
    } else if (tape.signatures[i] && e.timed) {
      known_->sample(*tape.signatures[i], e.self_ns);
    }
  }
}

}  // namespace herald
