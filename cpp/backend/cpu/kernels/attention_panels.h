#pragma once

#include "cpp/backend/cpu/kernels/attention_few.h"

// Attention of many query rows to a tile, with rows in the lanes: a panel is kLanes of them side by
// side, so that a key's word meets all of them at once and no softmax looks across lanes.
namespace pagedcore::cpu::PAGEDCORE_ISA {

// The most panels of a product: AVX2 has 16 registers for the sums, the others 32.
inline constexpr int kMaxPanels = kNumRegisters == 16 ? 3 : 4;

// Keys, or numbers of values, that one block of a product has: for sums enough to hide their
// latency.
inline constexpr int keys_of_block(int panels) { return panels == 1 ? 8 : 4; }

// Rows from which on panels take less time than a few rows at a time.
inline constexpr int kLeastPanelRows = 17;

// Of some rows those that make up panels; not the last ones where they would fill half of one or
// less.
inline constexpr int num_panel_rows(int rows) {
  const int last = rows % kLanes;
  if (rows < kLeastPanelRows) return 0;
  return last > kLanes / 2 ? rows : rows - last;
}

// Panels `stride` elements apart.
template <typename Element>
struct Panels {
  Element* data;
  std::int64_t stride;
};

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls f with the number of panels, of the `panels` that are left, that a product takes at once,
// as a constant: the most, unless that would leave a single one, whose sums wait for each other.
template <typename F>
[[gnu::always_inline]] inline void with_panels(int panels, F&& f) {
  const int count = panels == kMaxPanels + 1 ? kMaxPanels - 1 : panels;
  if (count >= kMaxPanels) {
    f(Constant<kMaxPanels>{});
  } else if (count == 3) {
    f(Constant<3>{});
  } else if (count == 2) {
    f(Constant<2>{});
  } else {
    f(Constant<1>{});
  }
}

// c[v] = a b[v], or c[v] += a b[v], for panels v: K rows a[r] of words `step` elements apart, b
// [words] [kLanes] words, c [K][kLanes]. Each sum runs over the words in order.
template <typename O, int V, int K>
[[gnu::noinline]] void multiply_panels(const typename O::Element* (&a)[K], std::int64_t step,
                                       Panels<const typename O::Element> b, std::int64_t words,
                                       Panels<float> c, bool add) {
  Vec sums[K][V];
#pragma GCC unroll 8
  for (int r = 0; r < K; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sums[r][v] = add ? load(c.data + v * c.stride + r * kLanes) : zero();
    }
  }
  for (std::int64_t i = 0; i < words; ++i) {
    Vec columns[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      columns[v] = O::load_words(b.data + v * b.stride + i * (kLanes * O::kPerWord));
    }
#pragma GCC unroll 8
    for (int r = 0; r < K; ++r) {
      const Vec word = O::splat_word(a[r] + i * step);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] = O::multiply_add(word, columns[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < K; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(c.data + v * c.stride + r * kLanes, sums[r][v]);
  }
}

// Online softmax of a panel's rows, as RowSoftmax is of one.
struct PanelSoftmax {
  Vec* largest;
  Vec* sum;
  float* values;  // [width][kLanes]
};

// Of a panel, the positions that each row sees: begin <= index < end.
struct PanelSight {
  Vec begin;
  Vec end;
  bool all;  // every row sees the whole tile
};

// Values at [begin, end) of a tile -> words [kTile / kPerWord][width], those around them from the
// nearest.
template <typename O>
void pack_values(const TileRows& values, int begin, int end, std::int64_t head_dim,
                 std::int64_t width, typename O::Element* out) {
  using Element = typename O::Element;
  for (int position = begin / O::kPerWord * O::kPerWord; position < end; position += O::kPerWord) {
    for (std::int64_t d = 0; d < head_dim; d += 2 * kLanes) {
      const Element* rows[O::kPerWord];
      for (int i = 0; i < O::kPerWord; ++i) {
        rows[i] = values.row<Element>(nearest(position + i, begin, end)) + d;
      }
      Vec words[2];
      O::load_rows(rows, head_dim - d, words[0], words[1]);
      Element* to = out + position * width + d * O::kPerWord;
      O::store_words(to, words[0]);
      O::store_words(to + kLanes * O::kPerWord, words[1]);
    }
  }
}

[[gnu::noinline]] inline void hide_scores(float* scores, const PanelSight& sight) {
  const Vec hidden = splat(-__builtin_inff());
  for (int k = 0; k < kTile; ++k) {
    const Vec index = splat(static_cast<float>(k));
    const Vec x = select_less(index, sight.begin, hidden, load(scores + k * kLanes));
    store(scores + k * kLanes, select_less(index, sight.end, x, hidden));
  }
}

// Takes a tile's scores [kTile][kLanes] into the softmax and gives their weights [kTile /
// kPerWord][kLanes], words: with the sums and the bits of weigh_row(). Rows that see nothing stay
// as they are.
template <typename O>
[[gnu::noinline]] void weigh_panel(float* scores, const PanelSight& sight, float softcap,
                                   std::int64_t width, const PanelSoftmax& softmax,
                                   typename O::Element* weights) {
  const Vec hidden = splat(-__builtin_inff());
  if (softcap != 0.0f) cap_scores(scores, kTile * kLanes, softcap);
  if (!sight.all) hide_scores(scores, sight);
  Vec maxima[4] = {hidden, hidden, hidden, hidden};
  for (int k = 0; k < kTile; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) maxima[i] = max(maxima[i], load(scores + (k + i) * kLanes));
  }
  const Vec old = *softmax.largest;
  const Vec largest = max(max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3])), old);
  const Vec one = splat(1.0f);
  if (max_lane(select_less(old, largest, one, zero())) > 0.0f) {
    const Vec factor = select_less(old, largest, exp2(old - largest), one);
    for (std::int64_t d = 0; d < width; ++d) {
      store(softmax.values + d * kLanes, load(softmax.values + d * kLanes) * factor);
    }
    *softmax.sum = *softmax.sum * factor;
    *softmax.largest = largest;
  }
  // Of a row that has seen nothing yet the largest score is not finite.
  const Vec origin = max(splat(-__FLT_MAX__), largest);
  // Lane j of the sums in weigh_row() is sums[j] here.
  Vec sums[kLanes];
  for (int j = 0; j < kLanes; j += O::kPerWord) {
    Vec total[O::kPerWord];
    for (Vec& x : total) x = zero();
#pragma GCC unroll 4
    for (int k = j; k < kTile; k += kLanes) {
      Vec numbers[O::kPerWord];
      for (int i = 0; i < O::kPerWord; ++i) {
        numbers[i] = O::exp2(load(scores + (k + i) * kLanes) - origin);
        total[i] = total[i] + numbers[i];
      }
      O::store_words(weights + k * kLanes, O::to_words(numbers));
    }
    for (int i = 0; i < O::kPerWord; ++i) sums[j + i] = total[i];
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) sums[j] = sums[j] + sums[j + half];
  }
  *softmax.sum = *softmax.sum + sums[0];
}

// Rows of 32-bit units, `stride` of them apart -> a panel [units][kLanes], and back for the first n
// rows. Units are moved kLanes at a time.
[[gnu::noinline]] inline void to_panel(const float* rows, std::int64_t stride, std::int64_t units,
                                       float* panel) {
  for (std::int64_t d = 0; d < units; d += kLanes) {
    Vec block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) block[i] = load(rows + i * stride + d);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(panel + (d + i) * kLanes, block[i]);
  }
}

[[gnu::noinline]] inline void from_panel(const float* panel, std::int64_t units, float* rows,
                                         std::int64_t stride, int n) {
  for (std::int64_t d = 0; d < units; d += kLanes) {
    Vec block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) block[i] = load(panel + (d + i) * kLanes);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i < n) store(rows + i * stride + d, block[i]);
    }
  }
}

}  // namespace pagedcore::cpu::PAGEDCORE_ISA
