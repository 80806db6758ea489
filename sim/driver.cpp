// SPDX-License-Identifier: Apache-2.0
// Drives the core of an accelerator through its four streams and compares all that comes out, many
// runs and many mutants in one process. sim/drive.py writes the runs and reads the verdicts.
//
// usage: simulator RUNS FIRST LAST: every run with `mutsel` = FIRST..LAST (0: no mutant), up to
// the first run of a mutant that differs. A verdict a line: mutant, run, word, cycle.
//
// RUNS is text: the registers of s_axil, their number and for each what it holds (CONSTANT..., see
// Register) and the value of a constant; then the number of runs, and for each: seed, gap and stall (chances in percent that
// a source pauses before a beat, that the receiver is not ready), cycle of a reset (0: none),
// cycles without a transfer that count as a hang, violations in and out, cycles from the first
// activation beat to the last output beat (0: not compared), and the beats of s_axis_param,
// s_axis_weight, s_axis_act and m_axis_out, then those of the first three that are sent before the
// reset, whose outputs do not count: their number, then tlast and hexadecimal tdata of each.
// CHECKS_INPUT, CHECKS_OUTPUT and SELECTED say which ports there are; with SHELL the module is the
// whole accelerator, and its registers are read and written all the while.

#include <verilated.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "Vtop.h"

namespace {

using Words = std::vector<uint32_t>;

struct Beat {
  bool last;
  Words data;
};

struct Run {
  unsigned long long seed;
  unsigned gap, stall, reset_at, limit, violations[2], cycles;
  std::vector<Beat> streams[7];
};

// What a register of s_axil holds: a constant, what the streams are doing, one of six counts of
// cycles and tiles, or a count of violations, which is only looked at behind the last tile.
enum Kind : unsigned { CONSTANT, CONTROL, STATUS, COUNT, VIOLATIONS = COUNT + 6 };
struct Register {
  unsigned kind;
  uint32_t value;
};

template <std::size_t N>
void put(VlWide<N>& port, const Words& words) {
  for (std::size_t i = 0; i < N; ++i) port[i] = i < words.size() ? words[i] : 0;
}
template <class T>
void put(T& port, const Words& words) {
  uint64_t value = words[0];
  if (words.size() > 1) value |= uint64_t{words[1]} << 32;
  port = static_cast<T>(value);
}
template <std::size_t N>
void get(const VlWide<N>& port, Words& words) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = port[i];
}
template <class T>
void get(const T& port, Words& words) {
  words[0] = static_cast<uint32_t>(port);
  if (words.size() > 1) words[1] = static_cast<uint32_t>(uint64_t{port} >> 32);
}

// Vigna's splitmix64: the same pauses on every machine.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  bool chance(unsigned percent) { return next() % 100 < percent; }
};

struct Source {
  const std::vector<Beat>* beats;
  std::size_t next = 0;
  unsigned wait = 0;
  bool valid = false;

  void restart(Random& random, unsigned gap) {
    next = 0;
    valid = false;
    pause(random, gap);
  }
  void pause(Random& random, unsigned gap) {
    wait = random.chance(gap) ? 1 + random.next() % 8 : 0;
  }
  // Choose what is offered in the coming cycle.
  void offer() {
    if (valid || next == beats->size()) return;
    if (wait) --wait;
    else valid = true;
  }
  void accepted(Random& random, unsigned gap) {
    valid = false;
    ++next;
    pause(random, gap);
  }
  Words data(Random& random) const {
    if (valid) return (*beats)[next].data;
    Words noise((*beats)[0].data.size());
    for (auto& word : noise) word = static_cast<uint32_t>(random.next());
    return noise;
  }
  bool last() const { return valid && (*beats)[next].last; }
};

struct Verdict {
  const char* word;
  unsigned cycle;
};

#ifdef SHELL
// What status and counters hold in a cycle, from the handshakes of the cycles before.
struct Shell {
  std::array<uint32_t, 7> values{};  // status, counts
  std::array<bool, 6> events{};
  unsigned in_flight = 0;
  bool complete = false;

  void clock(const Vtop& top, bool last_word) {
    for (int i = 0; i < 6; ++i) values[1 + i] += events[i];
    const bool busy = in_flight, blocked = top.m_axis_out_tvalid && !top.m_axis_out_tready;
    const bool done = top.m_axis_out_tvalid && top.m_axis_out_tready && top.m_axis_out_tlast;
    values[0] = busy | !top.s_axis_param_tready << 1 | blocked << 2;
    events = {busy, busy && top.s_axis_param_tready && !top.s_axis_param_tvalid,
              busy && top.s_axis_weight_tready && !top.s_axis_weight_tvalid,
              busy && top.s_axis_act_tready && !top.s_axis_act_tvalid, busy && blocked, done};
    in_flight += complete - done;
    complete = last_word;
  }
};

// A master on s_axil: any reads and writes without effect while tiles run; behind the last one
// every register, writes that must not clear the counters, the one that must, and all again.
struct Master {
  struct Access {
    unsigned address;
    uint32_t data;
    unsigned strobe, since;
  };
  const std::vector<Register>& registers;
  Random random;
  std::vector<Access> reads, writes;
  std::size_t sent[3] = {}, answered[2] = {};  // AR, AW, W; R, B
  bool valid[3] = {}, held[2] = {};
  uint32_t held_data = 0;
  unsigned held_resp[2] = {}, patience = 0;
  bool finishing = false, cleared = false;
  std::size_t step = 0;

  void restart() {
    reads.clear();
    writes.clear();
    sent[0] = sent[1] = sent[2] = answered[0] = answered[1] = patience = 0;
    valid[0] = valid[1] = valid[2] = held[0] = held[1] = false;
  }
  unsigned count() const { return registers.size(); }
  bool outside(unsigned address) const { return address >> 2 >= count(); }
  unsigned kind(unsigned address) const { return registers[address >> 2].kind; }
  bool quiet() const { return answered[0] == reads.size() && answered[1] == writes.size(); }
  // Any address, most of them of registers; a write never clears the counters.
  Access any() {
    Access access{static_cast<unsigned>(random.next() & 0xfff), static_cast<uint32_t>(random.next()),
                  static_cast<unsigned>(random.next() & 15), 0};
    if (random.chance(75)) access.address &= 4 * count() - 1;
    if (!outside(access.address) && kind(access.address) == CONTROL)
      (random.chance(50) ? access.data : access.strobe) &= ~1u;
    return access;
  }
  // Choose what comes next; return whether all is done.
  bool choose() {
    if (!finishing) {
      if (reads.size() < answered[0] + 2 && random.chance(20)) reads.push_back(any());
      if (writes.size() < answered[1] + 2 && random.chance(20)) writes.push_back(any());
      return false;
    }
    if (!quiet()) return false;
    unsigned control = 0;
    while (kind(4 * control) != CONTROL) ++control;
    const Access tries[] = {{4 * control, 1, 14, 0}, {4 * control, ~1u, 15, 0}, {4 * control, 1, 1, 0}};
    const std::size_t round = step / (count() + 1), place = step % (count() + 1);
    if (place < count()) reads.push_back({static_cast<unsigned>(4 * place), 0, 0, 0});
    else if (round < 3) writes.push_back(tries[round]);
    else return true;
    cleared = round == 3;
    ++step;
    return false;
  }
  void drive(Vtop& top, bool reset) {
    for (int c = 0; c < 3 && !reset; ++c)
      valid[c] = valid[c] || (sent[c] < (c ? writes : reads).size() && random.chance(60));
    const Access noise = any();
    const Access ar = valid[0] ? reads[sent[0]] : noise, aw = valid[1] ? writes[sent[1]] : noise;
    const Access w = valid[2] ? writes[sent[2]] : noise;
    top.s_axil_arvalid = valid[0] && !reset;
    top.s_axil_araddr = ar.address;
    top.s_axil_awvalid = valid[1] && !reset;
    top.s_axil_awaddr = aw.address;
    top.s_axil_wvalid = valid[2] && !reset;
    top.s_axil_wdata = w.data;
    top.s_axil_wstrb = w.strobe;
    top.s_axil_arprot = top.s_axil_awprot = random.next() & 7;
    top.s_axil_rready = !reset && random.chance(50);
    top.s_axil_bready = !reset && random.chance(50);
  }
  // Look at the handshakes of a cycle; return whether all of them are as they must be.
  bool check(Vtop& top, unsigned cycle, const std::vector<Shell>& history, const Run& run) {
    const bool offered[2] = {bool(top.s_axil_rvalid), bool(top.s_axil_bvalid)};
    const bool ready[2] = {bool(top.s_axil_rready), bool(top.s_axil_bready)};
    const unsigned resp[2] = {top.s_axil_rresp, top.s_axil_bresp};
    patience = quiet() ? 0 : patience + 1;
    if (patience > 200) return false;
    for (int c = 0; c < 2; ++c) {
      if (held[c] && (!offered[c] || resp[c] != held_resp[c])) return false;
      if (!c && held[c] && top.s_axil_rdata != held_data) return false;
      if (offered[c] && !held[c]) {
        // An answer without a question?
        const std::size_t asked = c ? std::min(sent[1], sent[2]) : sent[0];
        if (answered[c] >= asked) return false;
        const Access& access = (c ? writes : reads)[answered[c]];
        const bool wrong =
            outside(access.address) || (c && kind(access.address) != CONTROL);
        if (resp[c] != (wrong ? 2u : 0u)) return false;
        if (!c && !wrong && !fits(access, top.s_axil_rdata, cycle, history, run)) return false;
      }
      held[c] = offered[c] && !ready[c];
      held_resp[c] = resp[c];
      if (offered[c] && ready[c]) {
        ++answered[c];
        patience = 0;
      }
    }
    held_data = top.s_axil_rdata;
    const bool taken[3] = {valid[0] && top.s_axil_arready, valid[1] && top.s_axil_awready,
                           valid[2] && top.s_axil_wready};
    for (int c = 0; c < 3; ++c)
      if (taken[c]) {
        if (c == 0) reads[sent[0]].since = cycle;
        valid[c] = false;
        ++sent[c];
      }
    return true;
  }
  // Whether a register held this value in some cycle since the read was accepted.
  bool fits(const Access& access, uint32_t value, unsigned cycle, const std::vector<Shell>& history,
            const Run& run) const {
    const Register& word = registers[access.address >> 2];
    if (word.kind == CONSTANT || word.kind == CONTROL) return value == word.value;
    if (word.kind >= VIOLATIONS) {
      const unsigned expected = cleared ? 0 : run.violations[word.kind - VIOLATIONS];
      return !finishing || value == expected;
    }
    if (cleared && word.kind != STATUS) return value == 0;
    for (unsigned t = access.since; t < cycle; ++t)
      if (value == history[t].values[word.kind - STATUS]) return true;
    return false;
  }
};
#endif

Verdict simulate(const Run& run, const std::vector<Register>& registers, unsigned mutant) {
  VerilatedContext context;
  context.randReset(2);
  context.randSeed(static_cast<int>(run.seed % 1000003 + 1));
  const std::unique_ptr<Vtop> top{new Vtop{&context}};
#ifdef SELECTED
  top->mutsel = mutant;
#else
  (void)mutant;
#endif
#ifdef SHELL
  Shell shell;
  std::vector<Shell> history;
  Master master{registers, Random{run.seed + 1}, {}, {}};
#else
  (void)registers;
#if defined(CHECKS_INPUT) || defined(CHECKS_OUTPUT)
  top->clear_counters = 0;
#endif
#endif
  Random random{run.seed};
  Source sources[3];
  for (int s = 0; s < 3; ++s) {
    sources[s].beats = &run.streams[run.reset_at ? 4 + s : s];
    sources[s].restart(random, run.gap);
  }
  const std::vector<Beat>& expected = run.streams[3];
  std::size_t taken = 0;
  unsigned idle = 0, quiet = 0, first_act = 0, last_out = 0;
  bool held = false, held_last = false;
  Words data(expected[0].data.size()), held_data(data.size());
  for (unsigned cycle = 0;; ++cycle) {
    const bool reset = cycle < 3 || (run.reset_at && cycle == run.reset_at);
    const bool ready = !reset && !random.chance(run.stall);
    const bool counts = cycle > run.reset_at;
    if (!reset)
      for (auto& source : sources) source.offer();
    top->aresetn = !reset;
    top->m_axis_out_tready = ready;
#define DRIVE(index, name)                                    \
  top->s_axis_##name##_tvalid = !reset && sources[index].valid; \
  top->s_axis_##name##_tlast = sources[index].last();         \
  put(top->s_axis_##name##_tdata, sources[index].data(random));
    DRIVE(0, param)
    DRIVE(1, weight)
    DRIVE(2, act)
#undef DRIVE
#ifdef SHELL
    const bool finished = !reset && master.choose();
    master.drive(*top, reset);
#endif
    top->aclk = 0;
    top->eval();
    const bool accepted[3] = {sources[0].valid && top->s_axis_param_tready,
                              sources[1].valid && top->s_axis_weight_tready,
                              sources[2].valid && top->s_axis_act_tready};
    const bool valid = top->m_axis_out_tvalid, last = top->m_axis_out_tlast;
    get(top->m_axis_out_tdata, data);
#ifdef SHELL
    history.push_back(shell);
    if (reset) {
      shell = {};
      master.restart();
    } else {
      if (!master.check(*top, cycle, history, run)) return {"axil", cycle};
      shell.clock(*top, accepted[0] && sources[0].last());
    }
#endif
    if (!reset) {
      if (held && (!valid || last != held_last || data != held_data)) return {"unstable", cycle};
      held = valid && !ready;
      held_last = last;
      held_data = data;
      bool moved = valid && ready;
#ifdef SHELL
      moved = moved || master.finishing;
#endif
      for (int s = 0; s < 3; ++s)
        if (accepted[s]) {
          moved = true;
          if (s == 2 && !first_act) first_act = cycle;
          sources[s].accepted(random, run.gap);
        }
      quiet = moved ? 0 : quiet + 1;
      if (valid && ready) {
        if (counts) {
          if (taken == expected.size()) return {"surplus", cycle};
          if (data != expected[taken].data) return {"tdata", cycle};
          if (last != expected[taken].last) return {"tlast", cycle};
          ++taken;
          last_out = cycle;
        }
      }
      if (counts && quiet > run.limit) return {"hang", cycle};
      if (taken == expected.size() && ++idle > 40) {
        bool all = true;
        for (auto& source : sources) all = all && source.next == source.beats->size();
#if defined(CHECKS_INPUT) && !defined(SHELL)
        if (top->violations_in != run.violations[0]) return {"violations_in", cycle};
#endif
#if defined(CHECKS_OUTPUT) && !defined(SHELL)
        if (top->violations_out != run.violations[1]) return {"violations_out", cycle};
#endif
        if (!all) return {"untaken", cycle};
        if (run.cycles && run.cycles != last_out - first_act + 1) return {"cycles", cycle};
#ifdef SHELL
        master.finishing = true;
        if (finished) return {"equal", cycle};
#else
        return {"equal", cycle};
#endif
      }
    } else if (cycle == run.reset_at && run.reset_at) {
      for (int s = 0; s < 3; ++s) {
        sources[s].beats = &run.streams[s];
        sources[s].restart(random, run.gap);
      }
      taken = idle = quiet = 0;
      held = false;
    }
    top->aclk = 1;
    top->eval();
  }
}

template <class T>
T read(std::FILE* file) {
  unsigned long long value = 0;
  if (std::fscanf(file, "%llu", &value) != 1) std::exit(3);
  return static_cast<T>(value);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  std::FILE* file = std::fopen(argv[1], "r");
  if (!file) return 3;
  std::vector<Register> registers(read<std::size_t>(file));
  for (auto& word : registers) {
    word.kind = read<unsigned>(file);
    word.value = read<uint32_t>(file);
  }
  std::vector<Run> runs(read<std::size_t>(file));
  for (auto& run : runs) {
    run.seed = read<unsigned long long>(file);
    for (unsigned* value : {&run.gap, &run.stall, &run.reset_at, &run.limit, &run.violations[0],
                            &run.violations[1], &run.cycles})
      *value = read<unsigned>(file);
    for (auto& stream : run.streams) {
      stream.resize(read<std::size_t>(file));
      for (auto& beat : stream) {
        beat.last = read<unsigned>(file);
        char digits[1025];
        if (std::fscanf(file, "%1024s", digits) != 1) return 3;
        const std::string text{digits};
        for (std::size_t end = text.size(); end > 0; end -= end < 8 ? end : 8) {
          const std::size_t start = end < 8 ? 0 : end - 8;
          beat.data.push_back(
              static_cast<uint32_t>(std::stoul(text.substr(start, end - start), nullptr, 16)));
        }
      }
    }
  }
  std::fclose(file);
  for (unsigned mutant = std::atoi(argv[2]); mutant <= std::atoi(argv[3]) + 0u; ++mutant)
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const Verdict verdict = simulate(runs[i], registers, mutant);
      std::printf("%u %zu %s %u\n", mutant, i, verdict.word, verdict.cycle);
      std::fflush(stdout);
      if (std::string{"equal"} != verdict.word) break;
    }
  return 0;
}
