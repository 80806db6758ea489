// SPDX-License-Identifier: Apache-2.0
// Drives the core of an accelerator through its four streams and compares all that comes out, many
// runs and many mutants in one process. sim/drive.py writes the runs and reads the verdicts.
//
// usage: simulator RUNS FIRST LAST: every run with `mutsel` = FIRST..LAST (0: no mutant), up to
// the first run of a mutant that differs. A verdict a line: mutant, run, word, cycle.
//
// RUNS is text: the number of runs, and for each: seed, gap and stall (chances in percent that
// a source pauses before a beat, that the receiver is not ready), cycle of a reset (0: none),
// cycles without a transfer that count as a hang, violations in and out, cycles from the first
// activation beat to the last output beat (0: not compared), and the beats of s_axis_param,
// s_axis_weight, s_axis_act and m_axis_out, then those of the first three that are sent before the
// reset, whose outputs do not count: their number, then tlast and hexadecimal tdata of each.
// CHECKS_INPUT, CHECKS_OUTPUT and SELECTED say which ports there are.

#include <verilated.h>

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

Verdict simulate(const Run& run, unsigned mutant) {
  VerilatedContext context;
  context.randReset(2);
  context.randSeed(static_cast<int>(run.seed % 1000003 + 1));
  const std::unique_ptr<Vtop> top{new Vtop{&context}};
#ifdef SELECTED
  top->mutsel = mutant;
#else
  (void)mutant;
#endif
#if defined(CHECKS_INPUT) || defined(CHECKS_OUTPUT)
  top->clear_counters = 0;
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
    top->aclk = 0;
    top->eval();
    const bool accepted[3] = {sources[0].valid && top->s_axis_param_tready,
                              sources[1].valid && top->s_axis_weight_tready,
                              sources[2].valid && top->s_axis_act_tready};
    const bool valid = top->m_axis_out_tvalid, last = top->m_axis_out_tlast;
    get(top->m_axis_out_tdata, data);
    if (!reset) {
      if (held && (!valid || last != held_last || data != held_data)) return {"unstable", cycle};
      held = valid && !ready;
      held_last = last;
      held_data = data;
      bool moved = valid && ready;
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
#ifdef CHECKS_INPUT
        if (top->violations_in != run.violations[0]) return {"violations_in", cycle};
#endif
#ifdef CHECKS_OUTPUT
        if (top->violations_out != run.violations[1]) return {"violations_out", cycle};
#endif
        if (!all) return {"untaken", cycle};
        const bool timed = !run.cycles || run.cycles == last_out - first_act + 1;
        return {timed ? "equal" : "cycles", cycle};
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
      const Verdict verdict = simulate(runs[i], mutant);
      std::printf("%u %zu %s %u\n", mutant, i, verdict.word, verdict.cycle);
      std::fflush(stdout);
      if (std::string{"equal"} != verdict.word) break;
    }
  return 0;
}
