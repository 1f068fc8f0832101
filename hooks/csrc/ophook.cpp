// The op hook: RecordFunction callbacks that see every op of the process, pass heavy ones through the gate, and record.
// The only file that includes torch.
#include <ATen/record_function.h>
#include <pthread.h>

#include <algorithm>
#include <new>

#include "launches.hpp"
#include "op_timer.hpp"
#include "process.hpp"
#include "recording.hpp"
#include "signature.hpp"

namespace herald {
namespace {

// Leaked on purpose: threads may be inside a callback while the interpreter shuts down.
OpNames* g_names = new OpNames;

struct ThreadState {
  static constexpr uint32_t kNameSlots = 256;
  static constexpr uint32_t kFlushEvery = 64;
  static constexpr uint32_t kAllKnownAfter = 20'000;

  uint32_t serving_era = 0;  // the era in which it began a request: then it is an inference thread, never gated
  uint32_t ops_seen = 0;  // not yet in the job's row
  uint32_t ops_since_unknown = 0;
  OpTimer timer;
  ThreadTape tape;
  struct {
    const char* pointer = nullptr;
    const OpName* name = nullptr;
  } names[kNameSlots];

  // The same pointer can carry another name later (autograd's are temporary strings), so the text decides.
  const OpName* intern(const char* text) {
    auto& slot = names[(reinterpret_cast<uintptr_t>(text) >> 3) % kNameSlots];
    if (slot.pointer != text || slot.name->text != text) slot = {text, g_names->intern(text)};
    return slot.name;
  }
};

// A pointer in the static TLS block costs one load; an object in a loaded library costs a call and a guard.
__attribute__((tls_model("initial-exec"))) thread_local ThreadState* t_state = nullptr;

ThreadState& make_thread_state() {
  static const pthread_key_t at_exit = [] {
    pthread_key_t key;
    pthread_key_create(&key, [](void* state) {
      t_state = nullptr;
      delete static_cast<ThreadState*>(state);
    });
    return key;
  }();
  t_state = new ThreadState;
  pthread_setspecific(at_exit, t_state);
  return *t_state;
}

inline ThreadState& thread_state() { return t_state ? *t_state : make_thread_state(); }

// The gate's callback sees where an op begins; it is off while nobody could close the gate, and on standby. The learner's
// sees where an op ends, too, and is on only while there are ops whose time is unknown: an end callback costs a quarter
// of an event.
class Callbacks {
 public:
  static constexpr uint64_t kKnowsItsOps = 2'000;  // of this job, before its hook may rest: it learns best while alone

  void attach() {
    Guard guard(mutex_);
    attached_ = true;
    seen_.store(0, std::memory_order_relaxed);
    set(gate_, true);  // the learner comes with the first unknown op
  }

  bool arm(bool armed) {
    Guard guard(mutex_);
    const bool knows_ops = seen_.load(std::memory_order_relaxed) >= kKnowsItsOps;
    if (!attached_ || (!armed && (learning_.load(std::memory_order_relaxed) || !knows_ops))) return false;
    set(gate_, armed);
    return true;
  }

  void detach() {
    Guard guard(mutex_);
    attached_ = false;
    set(gate_, false);
    set(learner_, false);
    learning_.store(false, std::memory_order_relaxed);
  }

  void count(uint32_t ops) { seen_.fetch_add(ops, std::memory_order_relaxed); }

  void reset_lock() { new (&mutex_) Mutex; }

  void record(const Recorder* recorder) {
    Guard guard(mutex_);
    set(recorder_, recorder && !recorder->detail());
    set(detail_, recorder && recorder->detail());
  }

  // A callback that does nothing, as a measure of what torch itself takes for one.
  void listen_idly(bool wanted) {
    Guard guard(mutex_);
    set(nothing_, wanted);
  }

  void learn(bool wanted) {
    if (learning_.load(std::memory_order_relaxed) == wanted) return;
    Guard guard(mutex_);
    // At rest no op would be counted any more, and so nobody would ever turn the learner off.
    if (!attached_ || (wanted && !gate_.on)) return;
    set(learner_, wanted);
    learning_.store(wanted, std::memory_order_relaxed);
  }

 private:
  struct Callback {
    at::RecordFunctionCallback::StartCallback start;
    at::RecordFunctionCallback::EndCallback end;
    bool everything = false;  // autograd nodes and user ranges, too
    bool outputs = false;
    at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
    bool on = false;
  };

  // Adding, enabling and disabling take torch's own lock; threads pick the change up at their next op.
  static void set(Callback& c, bool on) {
    if (c.on == on) return;
    c.on = on;
    if (c.handle == at::INVALID_CALLBACK_HANDLE) {
      auto callback = at::RecordFunctionCallback(c.start, c.end).needsInputs(true).needsOutputs(c.outputs);
      std::unordered_set<at::RecordScope, std::hash<at::RecordScope>> scopes{at::RecordScope::FUNCTION};
      if (c.everything) scopes.insert({at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE});
      c.handle = at::addGlobalCallback(callback.scopes(scopes));
    } else if (on) {
      at::reenableCallback(c.handle);
    } else {
      at::disableCallback(c.handle);
    }
  }

  static std::unique_ptr<at::ObserverContext> on_gate(const at::RecordFunction& fn);
  static std::unique_ptr<at::ObserverContext> on_learn(const at::RecordFunction& fn);
  static void on_learnt(const at::RecordFunction& fn, at::ObserverContext*);
  static std::unique_ptr<at::ObserverContext> on_begin(const at::RecordFunction& fn);
  static void on_end(const at::RecordFunction& fn, at::ObserverContext*);
  static std::unique_ptr<at::ObserverContext> on_nothing(const at::RecordFunction&) { return nullptr; }

  Mutex mutex_;
  Callback gate_{&on_gate, nullptr};
  Callback learner_{&on_learn, &on_learnt};
  Callback recorder_{&on_begin, &on_end, true};
  Callback detail_{&on_begin, &on_end, true, true};
  Callback nothing_{&on_nothing, nullptr};
  std::atomic<bool> learning_{false};
  std::atomic<uint64_t> seen_{0};
  bool attached_ = false;
};

Callbacks* g_callbacks = new Callbacks;

// What an op is known to cost, and what it works on.
struct Op {
  Operands operands;
  Signature* signature;  // null when the table of costs is full
  Kind kind;
  bool gated_inside;
};

// False when the op is none of ours: no gate, a serving thread, no device time, another device.
bool look_up(const Gate* gate, ThreadState& thread, const at::RecordFunction& fn, Op* op) {
  if (!gate || thread.serving_era == g_serving_era.load(std::memory_order_relaxed)) return false;
  const OpName& name = *thread.intern(fn.name());
  if (!name.device_op || (name.region && gate->is_cuda())) return false;
  const c10::DeviceType device = gate->is_cuda() ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
  op->operands = SignatureReader(device).read(name, fn.inputs());
  if (op->operands.device_index < 0) return false;
  op->signature = g_costs->find(op->operands.key);
  if (!op->signature) {
    op->signature = g_costs->add(op->operands.key, op->operands.numel, describe(name, fn.inputs()));
  }
  op->kind = op->signature ? op->signature->kind.load(std::memory_order_acquire) : kUnknown;
  op->gated_inside = name.gated_inside;
  return true;
}

void count_op(Gate& gate, ThreadState& thread, bool unknown) {
  if (unknown) {
    thread.ops_since_unknown = 0;
    g_callbacks->learn(true);
  }
  if (++thread.ops_seen < ThreadState::kFlushEvery) return;
  gate.row().ops_seen.fetch_add(thread.ops_seen, std::memory_order_relaxed);
  g_callbacks->count(thread.ops_seen);
  thread.ops_since_unknown += thread.ops_seen;
  thread.ops_seen = 0;
  if (thread.ops_since_unknown > ThreadState::kAllKnownAfter) g_callbacks->learn(false);
}

std::unique_ptr<at::ObserverContext> Callbacks::on_gate(const at::RecordFunction& fn) {
  Gate* gate = g_gate.load(std::memory_order_acquire);
  ThreadState& thread = thread_state();
  Op op;
  // A wait inside an op that is being timed would count as its time, so there is none.
  if (!look_up(gate, thread, fn, &op) || thread.timer.inside()) return nullptr;
  count_op(*gate, thread, op.kind == kUnknown);
  if (op.kind == kNone) return nullptr;
  const int64_t self_ns = op.signature ? op.signature->self_ns.load(std::memory_order_relaxed) : 0;
  if (op.kind == kLight && !gate->all_heavy()) {
    gate->pass_light(self_ns);
  } else if (op.kind == kUnknown) {
    gate->pass_unknown(static_cast<uint32_t>(op.operands.device_index));
  } else {
    gate->pass_known(static_cast<uint32_t>(op.operands.device_index), self_ns, op.gated_inside);
  }
  return nullptr;
}

// Times an unknown op together with all that it calls.
std::unique_ptr<at::ObserverContext> Callbacks::on_learn(const at::RecordFunction& fn) {
  const Gate* gate = g_gate.load(std::memory_order_acquire);
  ThreadState& thread = thread_state();
  Op op;
  if (look_up(gate, thread, fn, &op) && op.signature && (op.kind == kUnknown || thread.timer.inside())) {
    const CudaDriver* cuda = gate->is_cuda() ? &cuda_driver() : nullptr;
    thread.timer.begin(&fn, *op.signature, cuda, op.operands.device_index);
  }
  return nullptr;
}

void Callbacks::on_learnt(const at::RecordFunction& fn, at::ObserverContext*) {
  if (t_state && t_state->timer.inside()) t_state->timer.end(&fn, *g_costs);
}

std::unique_ptr<at::ObserverContext> Callbacks::on_begin(const at::RecordFunction& fn) {
  if (const InRecording recording; recording) {
    ThreadState& thread = thread_state();
    record_begin(*recording, thread.tape.of(*recording), *thread.intern(fn.name()), fn);
  }
  return nullptr;
}

void Callbacks::on_end(const at::RecordFunction& fn, at::ObserverContext*) {
  if (const InRecording recording; recording) {
    if (Tape* tape = thread_state().tape.find(*recording)) record_end(*recording, *tape, fn);
  }
}

}  // namespace

void enable_callbacks() { g_callbacks->attach(); }

void disable_callbacks() { g_callbacks->detach(); }

bool arm_callbacks(bool armed) { return g_callbacks->arm(armed); }

void mark_serving_thread() { thread_state().serving_era = g_serving_era.load(std::memory_order_relaxed); }

void reset_hook_in_child() {
  g_names = g_names->successor().release();
  g_recording.store(nullptr, std::memory_order_release);
  g_num_recording.store(0, std::memory_order_release);
  g_recorded = nullptr;  // leaked, as the costs are: another thread may have been in the middle of writing
  g_recorded_costs = new_recorded_costs();
  g_callbacks->reset_lock();
  if (t_state) *t_state = ThreadState();
}

}  // namespace herald

using namespace herald;

#define HERALD_API __attribute__((visibility("default")))
extern "C" {

// Ops that only call other ops: decided by name. Before the first op.
HERALD_API void herald_names_wrapper(const char* name) { g_names->add_wrapper(name); }

// For measurements: has torch call something that does nothing for every op.
HERALD_API void herald_listen_idly(int on) { g_callbacks->listen_idly(on != 0); }

// Starts recording all threads. Device time by stream events on CUDA device `index`; wall time where that is < 0.
// Returns the recording's number, from 1, or 0 with the reason in `error`.
HERALD_API uint64_t herald_record_start(int index, int detail, char* error, size_t error_size) {
  static uint64_t number = 0;
  install_once();
  if (g_recording.load(std::memory_order_acquire)) {
    std::snprintf(error, error_size, "another recording is running in this process");
    return 0;
  }
  const CudaDriver* driver = nullptr;
  std::string why;
  if (index >= 0 && !(driver = ready_cuda_driver(index, &why))) {
    std::snprintf(error, error_size, "%s", why.c_str());
    return 0;
  }
  delete g_recorded;
  g_recorded = new Recording(++number, driver, g_recorded_costs, detail != 0);
  g_recording.store(g_recorded, std::memory_order_release);
  g_callbacks->record(&g_recorded->recorder);
  return number;
}

// Stops; ops that are running meanwhile may be lost. The recording can be read until the next one starts: no thread
// writes into it any more when this returns.
HERALD_API void herald_record_stop() {
  g_recording.store(nullptr, std::memory_order_seq_cst);
  g_callbacks->record(nullptr);
  const timespec nap{0, 20'000};
  while (g_num_recording.load(std::memory_order_seq_cst) != 0) nanosleep(&nap, nullptr);
}

// A range of this thread, as an event of scope mark.
HERALD_API void herald_record_mark_begin(const char* text) {
  const InRecording recording;
  if (!recording) return;
  const OpName& name = *g_names->intern(text);
  Recorder& recorder = (*recording).recorder;
  Operands operands;
  operands.key = name.hash;
  Signature* s = recorded_signature(recorder.known(), name, operands, nullptr);
  recorder.begin(thread_state().tape.of(*recording), nullptr, s, kScopeMark, -1, -1);
}

HERALD_API void herald_record_mark_end() {
  const InRecording recording;
  if (recording) (*recording).recorder.end(thread_state().tape.of(*recording), nullptr);
}

// Reads the device times that are left of a recording; the device must be idle. 0: it runs still, or another came.
HERALD_API int herald_record_finish(uint64_t number) {
  if (!g_recorded || g_recorded->number != number || g_recording.load(std::memory_order_acquire)) return 0;
  g_recorded->recorder.finish();
  return 1;
}

HERALD_API uint32_t herald_record_tapes() {
  return g_recorded ? static_cast<uint32_t>(g_recorded->recorder.tapes().size()) : 0;
}

// One thread's events and tensors, in the recorder's memory: valid until the next recording starts.
HERALD_API void herald_record_tape(uint32_t i, const RecordedEvent** events, uint64_t* num_events,
                                   const RecordedTensor** tensors, uint64_t* num_tensors) {
  const Tape& tape = *g_recorded->recorder.tapes()[i];
  *events = tape.events.data();
  *num_events = tape.events.size();
  *tensors = tape.tensors.data();
  *num_tensors = tape.tensors.size();
}

// The i-th signature of all recordings; 0 past the last. `text` is cut at `size` bytes.
HERALD_API int herald_record_signature(uint64_t i, uint64_t* key, uint64_t* numel, char* text, size_t size) {
  std::string readable;
  const Signature* s = g_recorded_costs->at(i, &readable);
  if (!s) return 0;
  *key = s->key.load(std::memory_order_relaxed);
  *numel = s->numel.load(std::memory_order_relaxed);
  std::snprintf(text, size, "%s", readable.c_str());
  return 1;
}

// The arguments of a signature as JSON, from a recording in detail; null without. Valid until the next recording.
HERALD_API const char* herald_record_args(uint64_t key) {
  if (!g_recorded) return nullptr;
  const auto found = g_recorded->args.find(key);
  return found == g_recorded->args.end() ? nullptr : found->second.c_str();
}

// For PyCFunction_NewEx: 0 is `begin(name, values)`, made with a tuple of tensor types as its self; 1 is `end()`.
HERALD_API void* herald_launch_method(int which) { return &launch_methods[which]; }

}  // extern "C"
