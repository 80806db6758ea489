// SPDX-License-Identifier: Apache-2.0
// Runs output tiles through the core of an accelerator and writes faults into its registers. Clock,
// streams and faults never leave this process; sim/inject.py starts it and speaks with it on its
// standard input and output, in the order of the functions read_* and answer below, all numbers
// little-endian.
//
// A request is a letter and its data:
//   R  a register: scope, variable, index of a memory's word (-1: none). Answer: its number, from
//      0, or -1.
//   L  tiles to be sent: settings, then the beats of s_axis_param, s_axis_weight and s_axis_act.
//      They are run once without faults. Answer: what came out.
//   F  lists of faults, each a run of the same tiles of its own. Answer for each: what came out.
//   T  a file name, a window of cycles and one list of faults: the same, with a waveform
//      (only in a build with VM_TRACE).
//
// A run begins RESET cycles before cycle 0, in which aresetn is low. A fault is written in the
// middle of a cycle: behind the rising edge and ahead of the next one. Stuck bits are written in
// every cycle. Registers of the array have no reset, so every run begins with the same state: a
// model flattened into one object of plain data is saved and restored as its bytes. Runs begin at
// the last saved state ahead of their first fault, and end early when they have become equal to the
// one without faults; either is off where the interval of saved states is 0.

#include <verilated.h>
#include <verilated_syms.h>
#if VM_TRACE
#include <verilated_vcd_c.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "Vtop.h"
#include "Vtop___024root.h"

namespace {

constexpr int32_t RESET = 4;
enum Status : uint32_t { COMPLETE, HANG };
enum Kind : uint32_t { FLIP, STUCK0, STUCK1 };

struct Fault {
  int32_t cycle;  // INT32_MIN: in every cycle
  uint32_t target, kind, low, mask;
  bool permanent() const { return cycle == INT32_MIN; }
};

// Beats as bytes: flags (1 tlast, 2 first of an output tile), then tdata.
struct Stream {
  uint32_t count, bytes;
  std::vector<uint8_t> beats;
  const uint8_t* beat(uint32_t index) const { return &beats[std::size_t{index} * (bytes + 1)]; }
};

struct Settings {
  uint32_t out_beats;  // expected
  uint32_t out_bytes;
  uint32_t quiet;      // cycles without a transfer that count as a hang
  uint32_t linger;     // cycles behind the last expected beat in which more may come
  uint32_t stall;      // chance in 65536 that a stream pauses for a cycle
  uint32_t interval;   // cycles between saved states, 0: none are kept
  uint64_t seed;       // of the pauses
};

// What moves the streams, in one object of plain data as the model is.
struct Side {
  int32_t cycle;
  uint32_t next[3];
  uint32_t valid[3];
  uint32_t taken, tiles_in, tiles_out, quiet, idle, breaches, held;
  uint64_t random;
};

struct State {
  Side side;
  std::vector<uint8_t> model;
};

struct Outcome {
  uint32_t status = COMPLETE;
  int32_t cycle = 0;          // the last one
  uint32_t simulated = 0;     // cycles
  uint32_t handshakes = 0;    // valid and ready of param, weight, act, out, the last bit out's ready
  uint32_t breaches = 0;      // an offered output beat changed
  uint32_t violations[2] = {0, 0};
  std::vector<int32_t> first_accept, last_output;  // of every output tile
  std::vector<uint32_t> counted;                   // violations in and out when each tile begins
  std::vector<uint8_t> beats;                      // as in Stream
};

template <class T>
T read() {
  T value{};
  if (std::fread(&value, sizeof value, 1, stdin) != 1) std::exit(0);
  return value;
}
std::string read_text() {
  std::string text(read<uint32_t>(), '\0');
  if (!text.empty() && std::fread(&text[0], text.size(), 1, stdin) != 1) std::exit(0);
  return text;
}
template <class T>
void write(const T& value) {
  std::fwrite(&value, sizeof value, 1, stdout);
}
template <class T>
void write_all(const std::vector<T>& values) {
  write(static_cast<uint32_t>(values.size()));
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

class Bench {
 public:
  Bench() : top{new Vtop{&context}} {
    power_up.model.resize(sizeof *top->rootp);
#if VM_TRACE
    context.traceEverOn(true);
    top->trace(&waveform, 99);
#endif
    top->aclk = 0;
    top->eval();
    power_up.side = Side{};
    power_up.side.cycle = -RESET;
    save(power_up);
  }

  int32_t find(const std::string& scope_name, const std::string& variable, int32_t word) {
    const VerilatedScope* scope = context.scopeFind(scope_name.c_str());
    VerilatedVar* var = scope ? scope->varFind(variable.c_str()) : nullptr;
    if (!var) return -1;
    uint8_t* data = static_cast<uint8_t*>(var->datap());
    if (word >= 0) data += std::size_t(word) * var->entSize();
    registers.push_back(data);
    return static_cast<int32_t>(registers.size()) - 1;
  }

  Outcome load(const Settings& wanted, std::vector<Stream> stimulus) {
    settings = wanted;
    streams = std::move(stimulus);
    saved.clear();
    power_up.side.random = settings.seed ^ 0x9e3779b97f4a7c15ull;
    restore(power_up);
    golden = Outcome{};
    golden = simulate({}, true);
    return golden;
  }

  Outcome inject(const std::vector<Fault>& faults) {
    int32_t first = INT32_MAX;
    for (const Fault& fault : faults) first = std::min(first, fault.cycle);
    const State* start = &power_up;
    for (const State& state : saved)
      if (state.side.cycle <= first) start = &state;
    restore(*start);
    return simulate(faults, false);
  }

#if VM_TRACE
  Outcome trace(const std::string& file, int32_t from, int32_t to,
                const std::vector<Fault>& faults) {
    restore(power_up);
    waveform.open(file.c_str());
    window_from = from;
    window_to = to;
    const Outcome outcome = simulate(faults, false);
    window_to = window_from = INT32_MIN;
    waveform.close();
    return outcome;
  }
#endif

 private:
  VerilatedContext context;
  const std::unique_ptr<Vtop> top;
  std::vector<uint8_t*> registers;
  Settings settings{};
  std::vector<Stream> streams;
  Side side{};
  State power_up;
  std::vector<State> saved;
  Outcome golden;
#if VM_TRACE
  VerilatedVcdC waveform;
  int32_t window_from = INT32_MIN, window_to = INT32_MIN;
#endif

  void save(State& state) {
    state.model.resize(sizeof *top->rootp);
    std::memcpy(state.model.data(), static_cast<void*>(top->rootp), state.model.size());
  }
  void restore(const State& state) {
    std::memcpy(static_cast<void*>(top->rootp), state.model.data(), state.model.size());
    side = state.side;
  }
  bool equals(const State& state) const {
    return !std::memcmp(&state.side, &side, sizeof side) &&
           !std::memcmp(state.model.data(), static_cast<const void*>(top->rootp),
                        state.model.size());
  }

  void write_fault(const Fault& fault) {
    // A register lies in at most five bytes of a variable of up to thousands of bits.
    uint8_t* byte = registers[fault.target] + fault.low / 8;
    uint64_t mask = uint64_t{fault.mask} << (fault.low % 8);
    for (; mask; mask >>= 8, ++byte) {
      const uint8_t part = mask & 0xff;
      if (fault.kind == FLIP) *byte ^= part;
      else if (fault.kind == STUCK1) *byte |= part;
      else *byte &= ~part;
    }
  }

  // Marsaglia's xorshift64: the same pauses on every machine.
  bool pauses() {
    if (!settings.stall) return false;
    side.random ^= side.random << 13;
    side.random ^= side.random >> 7;
    side.random ^= side.random << 17;
    return (side.random & 0xffff) < settings.stall;
  }

  template <class Valid, class Last, class Data>
  void offer(int s, Valid& valid, Last& last, Data& data) {
    const bool rest = pauses();
    if (!side.valid[s]) side.valid[s] = side.next[s] < streams[s].count && !rest;
    valid = side.valid[s] && side.cycle >= 0;
    const uint8_t* beat = side.valid[s] ? streams[s].beat(side.next[s]) : nullptr;
    last = beat && (beat[0] & 1);
    std::memset(&data, 0, sizeof data);
    if (beat) std::memcpy(&data, beat + 1, streams[s].bytes);
  }

  Outcome simulate(const std::vector<Fault>& faults, bool is_golden) {
    int32_t last_fault = INT32_MIN;
    bool permanent = false;
    for (const Fault& fault : faults) {
      permanent |= fault.permanent();
      last_fault = std::max(last_fault, fault.cycle);
    }
    Outcome out;
    out.first_accept.assign(golden.first_accept.begin(),
                            golden.first_accept.begin() + side.tiles_in);
    out.counted.assign(golden.counted.begin(), golden.counted.begin() + 2 * side.tiles_in);
    out.last_output.assign(golden.last_output.begin(),
                           golden.last_output.begin() + side.tiles_out);
    const std::size_t size = settings.out_bytes + 1;
    out.beats.assign(golden.beats.begin(), golden.beats.begin() + side.taken * size);
    std::vector<uint8_t> beat(size), held(size);
    std::size_t upcoming = 0;
    while (upcoming < saved.size() && saved[upcoming].side.cycle <= side.cycle) ++upcoming;
    for (;; ++side.cycle) {
      if (is_golden && settings.interval && side.cycle % int32_t(settings.interval) == 0) {
        saved.push_back({side, {}});
        save(saved.back());
      }
      if (!is_golden && upcoming < saved.size() && saved[upcoming].side.cycle == side.cycle) {
        if (!permanent && last_fault < side.cycle && equals(saved[upcoming])) {
          // From here on all is as without faults.
          out.cycle = golden.cycle;
          std::memcpy(out.violations, golden.violations, sizeof out.violations);
          out.breaches = golden.breaches;
          out.handshakes = golden.handshakes;
          out.status = golden.status;
          const auto rest = [](auto& mine, const auto& theirs) {
            mine.insert(mine.end(), theirs.begin() + mine.size(), theirs.end());
          };
          rest(out.first_accept, golden.first_accept);
          rest(out.last_output, golden.last_output);
          rest(out.counted, golden.counted);
          rest(out.beats, golden.beats);
          return out;
        }
        ++upcoming;
      }
      for (const Fault& fault : faults)
        if (fault.permanent() || fault.cycle == side.cycle) write_fault(fault);
      top->aresetn = side.cycle >= 0;
#if defined(CHECKS_INPUT) || defined(CHECKS_OUTPUT)
      top->clear_counters = 0;
#endif
      offer(0, top->s_axis_param_tvalid, top->s_axis_param_tlast, top->s_axis_param_tdata);
      offer(1, top->s_axis_weight_tvalid, top->s_axis_weight_tlast, top->s_axis_weight_tdata);
      offer(2, top->s_axis_act_tvalid, top->s_axis_act_tlast, top->s_axis_act_tdata);
      const bool ready = !pauses();
      top->m_axis_out_tready = ready;
      top->aclk = 0;
      top->eval();
#if VM_TRACE
      if (side.cycle >= window_from && side.cycle <= window_to)
        waveform.dump(static_cast<uint64_t>(2 * (side.cycle + RESET)));
#endif
      ++out.simulated;
      if (side.cycle >= 0 && !step(out, ready, beat, held)) break;
      top->aclk = 1;
      top->eval();
#if VM_TRACE
      if (side.cycle >= window_from && side.cycle <= window_to)
        waveform.dump(static_cast<uint64_t>(2 * (side.cycle + RESET) + 1));
#endif
    }
    out.cycle = side.cycle;
    out.breaches = side.breaches;
    for (int i = 0; i < 2; ++i) out.violations[i] = violations(i);
    return out;
  }

  uint32_t violations(int at_output) const {
#ifdef CHECKS_INPUT
    if (!at_output) return top->violations_in;
#endif
#ifdef CHECKS_OUTPUT
    if (at_output) return top->violations_out;
#endif
    (void)at_output;
    return 0;
  }

  // Do what happens at the end of a cycle; return whether there is another one.
  bool step(Outcome& out, bool ready, std::vector<uint8_t>& beat, std::vector<uint8_t>& held) {
    const bool accepted[3] = {side.valid[0] && top->s_axis_param_tready,
                              side.valid[1] && top->s_axis_weight_tready,
                              side.valid[2] && top->s_axis_act_tready};
    const bool valid = top->m_axis_out_tvalid;
    bool moved = valid && ready;
    for (int s = 0; s < 3; ++s) {
      if (!accepted[s]) continue;
      moved = true;
      if (s == 2 && (streams[2].beat(side.next[2])[0] & 2)) {
        out.first_accept.push_back(side.cycle);
        for (int i = 0; i < 2; ++i) out.counted.push_back(violations(i));
        ++side.tiles_in;
      }
      ++side.next[s];
      side.valid[s] = 0;
    }
    beat[0] = top->m_axis_out_tlast;
    std::memcpy(&beat[1], &top->m_axis_out_tdata, settings.out_bytes);
    if (side.held && (!valid || beat != held)) ++side.breaches;
    side.held = valid && !ready;
    if (side.held) held = beat;
    if (valid && ready) {
      out.beats.insert(out.beats.end(), beat.begin(), beat.end());
      ++side.taken;
      if (beat[0]) {
        out.last_output.push_back(side.cycle);
        ++side.tiles_out;
      }
    }
    side.quiet = moved ? 0 : side.quiet + 1;
    if (side.taken >= settings.out_beats) {
      if (++side.idle > settings.linger) return false;
    } else if (side.quiet >= settings.quiet) {
      out.status = HANG;
      out.handshakes = side.valid[0] << 7 | top->s_axis_param_tready << 6 | side.valid[1] << 5 |
                       top->s_axis_weight_tready << 4 | side.valid[2] << 3 |
                       top->s_axis_act_tready << 2 | unsigned{valid} << 1 | unsigned{ready};
      return false;
    }
    return true;
  }
};

void answer(const Outcome& out) {
  write(out.status);
  write(out.cycle);
  write(out.simulated);
  write(out.handshakes);
  write(out.breaches);
  write(out.violations);
  write_all(out.first_accept);
  write_all(out.last_output);
  write_all(out.counted);
  write_all(out.beats);
}

std::vector<Fault> read_faults() {
  std::vector<Fault> faults(read<uint32_t>());
  for (Fault& fault : faults) fault = read<Fault>();
  return faults;
}

}  // namespace

int main() {
  const std::unique_ptr<Bench> bench{new Bench};
  for (;;) {
    switch (read<char>()) {
      case 'R': {
        const std::string scope = read_text(), variable = read_text();
        write(bench->find(scope, variable, read<int32_t>()));
        break;
      }
      case 'L': {
        const Settings settings = read<Settings>();
        std::vector<Stream> streams(3);
        for (Stream& stream : streams) {
          stream.count = read<uint32_t>();
          stream.bytes = read<uint32_t>();
          stream.beats.resize(std::size_t{stream.count} * (stream.bytes + 1));
          if (!stream.beats.empty() &&
              std::fread(stream.beats.data(), stream.beats.size(), 1, stdin) != 1)
            return 0;
        }
        answer(bench->load(settings, std::move(streams)));
        break;
      }
      case 'F': {
        std::vector<std::vector<Fault>> runs(read<uint32_t>());
        for (auto& faults : runs) faults = read_faults();
        for (const auto& faults : runs) answer(bench->inject(faults));
        break;
      }
#if VM_TRACE
      case 'T': {
        const std::string file = read_text();
        const int32_t from = read<int32_t>(), to = read<int32_t>();
        answer(bench->trace(file, from, to, read_faults()));
        break;
      }
#endif
      default: return 2;
    }
    std::fflush(stdout);
  }
}
