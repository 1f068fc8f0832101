// What is being recorded now, and what an op event leaves in it. Included by ophook.cpp alone: it sees torch.
#pragma once

#include <ATen/record_function.h>

#include <string>
#include <unordered_map>
#include <vector>

#include "recorder.hpp"
#include "signature.hpp"
#include "tensors.hpp"

namespace herald {

// What is being recorded now. One at a time; set and cleared by herald_record_start and _stop.
struct Recording {
  Recording(uint64_t number, const CudaDriver* cuda, Costs* known, bool detail)
      : number(number), recorder(cuda, known, detail) {}
  const uint64_t number;
  Recorder recorder;
  StorageNames storages;
  Mutex mutex;
  std::unordered_map<uint64_t, std::string> args;  // by signature key
};

inline std::atomic<Recording*> g_recording{nullptr};
// Threads that are writing into it: nobody may read or free it meanwhile.
inline std::atomic<uint32_t> g_num_recording{0};
inline Recording* g_recorded = nullptr;  // the last one, kept until the next; Python serialises start, stop and read
// Of all recordings of this process: who has work of its own. Shorter than this is none: wrappers are known by name,
// and a border that is left out gives a short op's time to its neighbour.
inline Costs* new_recorded_costs() {
  auto* costs = new Costs;
  costs->rule.none_below_ns = 300;
  return costs;
}
inline Costs* g_recorded_costs = new_recorded_costs();

// What is being recorded, for as long as this lives; null: nothing is.
class InRecording {
 public:
  InRecording() {
    g_num_recording.fetch_add(1, std::memory_order_seq_cst);  // before the look: herald_record_stop looks the other way
    recording_ = g_recording.load(std::memory_order_seq_cst);
  }
  ~InRecording() { g_num_recording.fetch_sub(1, std::memory_order_release); }
  InRecording(const InRecording&) = delete;
  InRecording& operator=(const InRecording&) = delete;

  explicit operator bool() const { return recording_; }
  Recording& operator*() const { return *recording_; }

 private:
  Recording* recording_;
};

// A thread's tape in the recording that it last took part in.
class ThreadTape {
 public:
  // In this recording; made when it comes to its first event.
  Tape& of(Recording& recording) {
    if (number_ != recording.number) {
      tape_ = recording.recorder.new_tape();
      number_ = recording.number;
    }
    return *tape_;
  }

  // Null where the thread has none in it.
  Tape* find(const Recording& recording) const { return number_ == recording.number ? tape_ : nullptr; }

 private:
  uint64_t number_ = 0;
  Tape* tape_ = nullptr;
};

inline RecordedScope recorded_scope(at::RecordScope scope) {
  if (scope == at::RecordScope::BACKWARD_FUNCTION) return kScopeBackward;
  return scope == at::RecordScope::USER_SCOPE ? kScopeUser : kScopeFunction;
}

// The signature of what was read of an op; of its name alone where nothing was (`fn` null).
inline Signature* recorded_signature(Costs& known, const OpName& name, const Operands& operands,
                                     const at::RecordFunction* fn) {
  Signature* s = known.find(operands.key);
  if (s) return s;
  s = known.add(operands.key, operands.numel, fn ? describe(name, fn->inputs()) : name.text);
  if (s && !(fn && name.device_op)) s->kind.store(kNone, std::memory_order_relaxed);
  return s;
}

inline void record_begin(Recording& recording, Tape& tape, const OpName& name, const at::RecordFunction& fn) {
  Recorder& recorder = recording.recorder;
  const RecordedScope scope = recorded_scope(fn.scope());
  Operands operands;
  operands.key = name.hash;
  const bool reads = scope == kScopeFunction && (name.device_op || recorder.detail());
  if (reads) {
    const auto device = recorder.is_cuda() ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
    operands = SignatureReader(device).read(name, fn.inputs());
  }
  Signature* s = recorded_signature(recorder.known(), name, operands, reads ? &fn : nullptr);
  const bool has_device = name.device_op && !(name.region && recorder.is_cuda());
  recorder.begin(tape, &fn, s, scope, has_device ? operands.device_index : -1, fn.seqNr());
  if (recorder.detail()) tape.inputs.push_back({read_inputs(fn, recording.storages), to_json(fn.inputs())});
}

inline void record_end(Recording& recording, Tape& tape, const at::RecordFunction& fn) {
  const int32_t index = recording.recorder.end(tape, &fn);
  if (index < 0 || tape.inputs.empty()) return;
  const Tape::Inputs inputs = std::move(tape.inputs.back());
  tape.inputs.pop_back();
  std::vector<RecordedTensor> outputs;
  for (const c10::IValue& output : fn.outputs()) add_tensors(output, -1, recording.storages, &outputs);
  tape.add_tensors(index, inputs.tensors, outputs);
  const Signature* s = tape.signatures[static_cast<size_t>(index)];
  if (!s) return;
  Guard guard(recording.mutex);
  std::string& args = recording.args[s->key.load(std::memory_order_relaxed)];
  if (args.empty()) args = "{\"in\":" + inputs.args + ",\"out\":" + to_json(fn.outputs()) + "}";
}

}  // namespace herald
