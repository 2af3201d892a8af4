// A GPT's forward pass on a CPU: token ids in, logits out, keys and values kept between calls.
//
// The network is that of nanogpt/model.py, in both architectures. One step computes the next tokens
// of any number of sequences; all of them go through each matrix together, so weights are read once
// a step. The functions at the end are all that Python calls, see library.py; they throw nothing
// and know nothing of requests or schedules.

#include "attention.h"

namespace {

struct Shape {
    int32_t n_layer, n_head, n_embd, vocab_size, block_size, num_slots, is_modern;
};

/// `num_tokens` tokens of a slot from position `start` on; the last `num_logits` get logits.
struct Chunk {
    int32_t slot, start, num_tokens, num_logits;
};

enum Status : int32_t { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2 };

/// A copy of `count` numbers, padded with zeros; all zeros for null.
Memory<float> vector_of(const float* from, size_t count) {
    Memory<float> copy(padded(count));
    if (from) std::copy(from, from + count, copy.get());
    return copy;
}

/// Root-mean-square normalization, https://arxiv.org/abs/1910.07467, without weights. y may be x;
/// beyond `size` numbers nothing is written.
void rms_norm(const float* x, float* y, size_t size) {
    Floats squares{};
    for (size_t k = 0; k < size; k += LANES) {
        const Floats numbers = load<Floats>(x + k);
        const Ints lanes = lane_numbers() + static_cast<int>(k);
        const Floats inside = lanes < static_cast<int>(size) ? numbers : Floats{};
        squares = fma(inside, inside, squares);
    }
    const Floats scale = all(1 / std::sqrt(sum(squares) / static_cast<float>(size) + 1e-6f));
    for (size_t k = 0; k < size; k += LANES) {
        const Floats scaled = load<Floats>(x + k) * scale;
        std::memcpy(y + k, &scaled, std::min<size_t>(LANES, size - k) * sizeof(float));
    }
}

/// Turns pairs of numbers, i and half + i of a head, by an angle for each position.
/// https://arxiv.org/abs/2104.09864; clockwise, as nanogpt/model.py.
class Rotation {
  public:
    Rotation(size_t num_positions, size_t head_size)
        : half_(head_size / 2), cos_(num_positions * half_), sin_(num_positions * half_) {
        for (size_t i = 0; i < half_; i++) {  // float32 where PyTorch has it
            const float exponent = -static_cast<float>(2 * i) / static_cast<float>(head_size);
            const float frequency = static_cast<float>(std::pow(10000.0, exponent));
            for (size_t position = 0; position < num_positions; position++) {
                const double angle = static_cast<float>(position) * frequency;
                cos_[position * half_ + i] = static_cast<float>(std::cos(angle));
                sin_[position * half_ + i] = static_cast<float>(std::sin(angle));
            }
        }
    }

    void apply(float* head, size_t position) const {
        const float *cos = &cos_[position * half_], *sin = &sin_[position * half_];
        for (size_t i = 0; i < half_; i++) {
            const float first = head[i], second = head[half_ + i];
            head[i] = first * cos[i] + second * sin[i];
            head[half_ + i] = second * cos[i] - first * sin[i];
        }
    }

  private:
    size_t half_;
    Memory<float> cos_, sin_;  // (positions, half)
};

struct Norm {
    Memory<float> weight, bias;
    size_t size;
    bool is_rms;

    /// Without weights it is that of the modern architecture.
    Norm(const float* weight, const float* bias, size_t size)
        : weight(vector_of(weight, size)), bias(vector_of(bias, size)), size(size),
          is_rms(!weight) {}

    /// Normalizes one row. x is padded with zeros, and so is y.
    void apply(const float* x, float* y) const {
        if (is_rms)
            rms_norm(x, y, size);
        else
            layer_norm(x, y);
    }

  private:
    /// https://arxiv.org/abs/1607.06450, epsilon as torch's.
    void layer_norm(const float* x, float* y) const {
        const size_t vectors = padded(size, LANES) / LANES;
        Floats total{};
        for (size_t v = 0; v < vectors; v++) total += load<Floats>(x + v * LANES);
        const Floats mean = all(sum(total) / static_cast<float>(size));
        Floats squares{};
        for (size_t v = 0; v < vectors; v++) {
            Floats off = load<Floats>(x + v * LANES) - mean;
            const Ints lanes = lane_numbers() + static_cast<int>(v * LANES);
            off = lanes < static_cast<int>(size) ? off : Floats{};
            squares = fma(off, off, squares);
        }
        const float variance = sum(squares) / static_cast<float>(size);
        const Floats scale = all(1 / std::sqrt(variance + 1e-5f));
        for (size_t k = 0; k < vectors * LANES; k += LANES) {
            const Floats off = (load<Floats>(x + k) - mean) * scale;
            store(y + k, fma(off, load<Floats>(weight.get() + k), load<Floats>(bias.get() + k)));
        }
    }
};

/// What Python passes for each layer: pointers to float32 weights; null where the network has none.
struct LayerWeights {
    const float *ln_1_weight, *ln_1_bias, *attn_weight, *attn_bias, *attn_proj_weight,
        *attn_proj_bias, *ln_2_weight, *ln_2_bias, *fc_weight, *fc_bias, *proj_weight, *proj_bias;
};

/// The embeddings are borrowed and must outlive the network; everything else is copied. Modern
/// networks have no `wpe`.
struct Weights {
    const float *wte, *wpe, *ln_f_weight, *ln_f_bias, *lm_head;
};

struct Layer {
    Norm ln_1, ln_2;
    Matrix attn, attn_proj, fc, proj;

    Layer(const LayerWeights& w, size_t width, Precision precision, Pool& pool)
        : ln_1(w.ln_1_weight, w.ln_1_bias, width), ln_2(w.ln_2_weight, w.ln_2_bias, width),
          attn(precision, w.attn_weight, w.attn_bias, 3 * width, width, pool),
          attn_proj(precision, w.attn_proj_weight, w.attn_proj_bias, width, width, pool),
          fc(precision, w.fc_weight, w.fc_bias, 4 * width, width, pool),
          proj(precision, w.proj_weight, w.proj_bias, width, 4 * width, pool) {}
};

class Network {
  public:
    virtual ~Network() = default;
    virtual Status forward(const Chunk*, int num_chunks, const int32_t* tokens, float* logits) = 0;
    virtual Status copy(int from_slot, int to_slot, int num_tokens) = 0;
    virtual Status clear(int slot) = 0;
    virtual int64_t num_weight_bytes() const = 0;
};

template <class Stored> class Gpt : public Network {
  public:
    Gpt(const Shape& shape, const Weights& weights, const LayerWeights* layers,
        Precision precision, int num_threads)
        : shape_(shape), width_(shape.n_embd), precision_(precision), pool_(num_threads),
          weights_(weights), ln_f_(weights.ln_f_weight, weights.ln_f_bias, width_),
          cache_(shape.n_layer, shape.num_slots, shape.n_head, shape.block_size,
                 shape.n_embd / shape.n_head),
          scratch_(num_threads * Attention<Stored>::scratch_size(cache_)),
          rotation_(shape.is_modern ? shape.block_size : 0, shape.n_embd / shape.n_head) {
        for (int layer = 0; layer < shape.n_layer; layer++)
            layers_.emplace_back(layers[layer], width_, precision, pool_);
        head_ = Matrix(head_precision(), weights.lm_head, nullptr, shape.vocab_size, width_, pool_);
        link();
        for (size_t i = 0; i < width_; i++) {
            const size_t head = i / cache_.head_size(), number = i % cache_.head_size();
            key_offsets_.push_back(cache_.keys(0, 0, head) - cache_.keys(0, 0, 0) +
                                   cache_.key_offset(0, number));
            value_offsets_.push_back(cache_.values(0, 0, head) - cache_.values(0, 0, 0) +
                                     cache_.value_offset(0, number));
        }
    }

    /// logits is (sum of num_logits, vocab_size padded to whole panels), by chunk.
    Status forward(const Chunk* chunks, int num_chunks, const int32_t* tokens,
                   float* logits) override {
        if (!plan(chunks, num_chunks, tokens)) return INVALID;
        make_room();
        embed(tokens);
        for (size_t layer = 0; layer < layers_.size(); layer++) compute(layer);
        if (!wanted_.empty()) compute_logits(logits);
        return OK;
    }

    Status copy(int from_slot, int to_slot, int num_tokens) override {
        if (!is_slot(from_slot) || !is_slot(to_slot) || num_tokens < 0 ||
            num_tokens > shape_.block_size)
            return INVALID;
        cache_.copy(from_slot, to_slot, num_tokens);
        return OK;
    }

    Status clear(int slot) override {
        if (!is_slot(slot)) return INVALID;
        cache_.clear(slot);
        return OK;
    }

    int64_t num_weight_bytes() const override {
        size_t total = head_.num_bytes();
        for (const Layer& layer : layers_)
            total += layer.attn.num_bytes() + layer.attn_proj.num_bytes() + layer.fc.num_bytes() +
                     layer.proj.num_bytes();
        return static_cast<int64_t>(total);
    }

  private:
    struct Token {
        size_t slot, position;
    };
    struct Tile {  // consecutive tokens of one chunk
        size_t row;
        int count;
    };

    /// Tells each matrix which one follows.
    void link() {
        Matrix* last = &head_;
        for (Layer& layer : layers_)
            for (Matrix* matrix : {&layer.attn, &layer.attn_proj, &layer.fc, &layer.proj}) {
                last->set_next(*matrix);
                last = matrix;
            }
        last->set_next(head_);
    }

    // four bits are too few for the head of a small vocabulary
    Precision head_precision() const {
        return precision_ == Precision::INT4 ? Precision::INT8 : precision_;
    }

    bool is_slot(int slot) const { return slot >= 0 && slot < shape_.num_slots; }

    /// Lays out the step; false if it asks for what does not exist.
    bool plan(const Chunk* chunks, int num_chunks, const int32_t* tokens) {
        tokens_.clear(), tiles_.clear(), wanted_.clear();
        for (const Chunk* chunk = chunks; chunk < chunks + num_chunks; chunk++) {
            if (!is_slot(chunk->slot) || chunk->start < 0 || chunk->num_tokens < 1 ||
                chunk->num_tokens > shape_.block_size - chunk->start || chunk->num_logits < 0 ||
                chunk->num_logits > chunk->num_tokens)
                return false;
            const size_t first = tokens_.size();
            for (int i = 0; i < chunk->num_tokens; i++) {
                if (tokens[first + i] < 0 || tokens[first + i] >= shape_.vocab_size) return false;
                if (i % Attention<Stored>::MAX_QUERIES == 0) tiles_.push_back({first + i, 0});
                tiles_.back().count++;
                if (i >= chunk->num_tokens - chunk->num_logits) wanted_.push_back(first + i);
                tokens_.push_back({static_cast<size_t>(chunk->slot),
                                   static_cast<size_t>(chunk->start + i)});
            }
        }
        return true;
    }

    void make_room() {
        if (const size_t rows = tokens_.size(); rows > num_rows_) {
            num_rows_ = 0;  // until all of it is there
            x_ = Activations(Precision::FLOAT32, rows, width_);
            normed_ = Activations(precision_, rows, width_);
            queries_ = Activations(Precision::FLOAT32, rows, width_);
            // with room behind the last head, of which whole vectors are read
            if (shape_.is_modern)
                unturned_ = Activations(Precision::FLOAT32, rows, 3 * width_ + LANES);
            attended_ = Activations(precision_, rows, width_);
            hidden_ = Activations(precision_, rows, 4 * width_);
            num_rows_ = rows;
        }
        if (const size_t rows = wanted_.size(); rows > num_last_) {
            num_last_ = 0;
            last_ = Activations(head_precision(), rows, width_);
            num_last_ = rows;
        }
    }

    /// Calls function(row) for each row, by all threads if there are enough.
    template <class Function> void for_rows(size_t count, const Function& function) {
        constexpr size_t PER_TASK = 4;
        const size_t num_tasks = (count + PER_TASK - 1) / PER_TASK;
        pool_.run(static_cast<int>(num_tasks), [&](int task, int) {
            const size_t end = std::min(count, (task + 1) * PER_TASK);
            for (size_t row = task * PER_TASK; row < end; row++) function(row);
        });
    }

    void embed(const int32_t* tokens) {
        for_rows(tokens_.size(), [&](size_t row) {
            const float* token = weights_.wte + tokens[row] * width_;
            float* x = x_.row(row);
            std::copy(token, token + width_, x);
            std::fill(x + width_, x + x_.stride(), 0.0f);  // NaN may have spread there
            if (shape_.is_modern) return rms_norm(x, x, width_);
            const float* position = weights_.wpe + tokens_[row].position * width_;
            for (size_t i = 0; i < width_; i++) x[i] += position[i];
        });
    }

    void normalize(const Norm& norm) {
        for_rows(tokens_.size(), [&](size_t row) {
            norm.apply(x_.row(row), normed_.row(row));
            normed_.round(row);
        });
    }

    void round(const Activations& activations) {
        if (activations.needs_rounding())
            for_rows(tokens_.size(), [&](size_t row) { activations.round(row); });
    }

    /// x += what `matrix` makes of `from`.
    void add_product(const Matrix& matrix, const Activations& from) {
        matrix.multiply(pool_, from.rows(), static_cast<int>(tokens_.size()),
                        [&](size_t row, size_t output, Floats y) {
                            float* x = x_.row(row) + output;
                            store(x, load<Floats>(x) + y);
                        });
    }

    void compute(size_t index) {
        const Layer& layer = layers_[index];
        const int num_rows = static_cast<int>(tokens_.size());
        normalize(layer.ln_1);
        layer.attn.multiply(pool_, normed_.rows(), num_rows,
                            [&](size_t row, size_t output, Floats y) {
                                if (shape_.is_modern)
                                    store(unturned_.row(row) + output, y);
                                else
                                    keep(index, row, output, y);
                            });
        if (shape_.is_modern) for_rows(num_rows, [&](size_t row) { turn_and_keep(index, row); });
        attend(index);
        round(attended_);
        add_product(layer.attn_proj, attended_);
        normalize(layer.ln_2);
        layer.fc.multiply(pool_, normed_.rows(), num_rows,
                          [&](size_t row, size_t output, Floats y) {
                              hidden_.put(row, output,
                                          shape_.is_modern ? squared_relu(y) : gelu(y));
                          });
        round(hidden_);
        add_product(layer.proj, hidden_);
    }

    /// Rotates and normalizes queries and keys of a row, whose heads are complete, and keeps it.
    void turn_and_keep(size_t layer, size_t row) {
        float* numbers = unturned_.row(row);
        for (size_t head = 0; head < 2 * width_; head += cache_.head_size()) {
            rotation_.apply(numbers + head, tokens_[row].position);
            rms_norm(numbers + head, numbers + head, cache_.head_size());
        }
        for (size_t output = 0; output < 3 * width_; output += LANES)
            keep(layer, row, output, load<Floats>(numbers + output));
    }

    /// Keeps LANES numbers of query, key and value of a row.
    INLINE void keep(size_t layer, size_t row, size_t output, Floats y) {
        const auto [slot, position] = tokens_[row];
        if (output + LANES <= width_) return store(queries_.row(row) + output, y);
        Stored* keys = cache_.keys(slot, layer, 0) + cache_.key_offset(position, 0);
        Stored* values = cache_.values(slot, layer, 0) + cache_.value_offset(position, 0);
        Stored kept[LANES];
        round_to(kept, y);
        if (cache_.head_size() % LANES == 0) {  // all are of one head
            if (output < 2 * width_)
                cache_.put_key(keys + key_offsets_[output - width_], kept);
            else if (output < 3 * width_)
                cache_.put_value(values + value_offsets_[output - 2 * width_], kept);
            return;
        }
        for (int lane = 0; lane < LANES; lane++) {
            const size_t i = output + lane;
            if (i < width_)
                queries_.row(row)[i] = y[lane];
            else if (i < 2 * width_)
                keys[key_offsets_[i - width_]] = kept[lane];
            else if (i < 3 * width_)
                values[value_offsets_[i - 2 * width_]] = kept[lane];
        }
    }

    void attend(size_t layer) {
        // one head's tiles after another: its keys and values stay in cache
        const int num_tiles = static_cast<int>(tiles_.size()), num_tasks = num_tiles * shape_.n_head;
        const Attention<Stored> attention(cache_);
        pool_.run(num_tasks, [&](int task, int thread) {
            const Tile& tile = tiles_[task % num_tiles];
            const size_t head = task / num_tiles, first = head * cache_.head_size();
            const auto [slot, position] = tokens_[tile.row];
            const Queries queries{queries_.row(tile.row) + first, queries_.stride(), position,
                                  attended_, tile.row, first};
            const int next = std::min(task + pool_.num_threads(), num_tasks - 1);
            const size_t next_slot = tokens_[tiles_[next % num_tiles].row].slot;
            attention.attend(queries, tile.count, cache_.keys(slot, layer, head),
                             cache_.values(slot, layer, head),
                             cache_.keys(next_slot, layer, next / num_tiles),
                             scratch_.get() + thread * Attention<Stored>::scratch_size(cache_));
        });
    }

    void compute_logits(float* logits) {
        for_rows(wanted_.size(), [&](size_t row) {
            ln_f_.apply(x_.row(wanted_[row]), last_.row(row));
            last_.round(row);
        });
        const size_t stride = head_.num_outputs();
        head_.multiply(pool_, last_.rows(), static_cast<int>(wanted_.size()),
                       [&](size_t row, size_t output, Floats y) {
                           store(logits + row * stride + output,
                                 shape_.is_modern ? soft_capped(y) : y);
                       });
    }

    const Shape shape_;
    const size_t width_;
    const Precision precision_;
    Pool pool_;
    const Weights weights_;
    const Norm ln_f_;
    const Cache<Stored> cache_;
    const Memory<float> scratch_;
    const Rotation rotation_;
    std::vector<Layer> layers_;
    Matrix head_;
    std::vector<size_t> key_offsets_, value_offsets_;  // of the numbers of all heads, in a slot

    // one step
    std::vector<Token> tokens_;
    std::vector<Tile> tiles_;
    std::vector<size_t> wanted_;  // rows that get logits
    size_t num_rows_ = 0, num_last_ = 0;
    Activations x_, normed_, unturned_, queries_, attended_, hidden_, last_;
};

template <class Function> int32_t guarded(const Function& function) {
    try {
        return function();
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    } catch (...) {  // threads that cannot be started
        return INVALID;
    }
}

}  // namespace

extern "C" {

int32_t nanogpt_create(const Shape* shape, const Weights* weights, const LayerWeights* layers,
                       int32_t precision, int32_t num_threads, Network** network) {
    return guarded([&]() -> int32_t {
        const auto held_as = static_cast<Precision>(precision);
        if (held_as == Precision::FLOAT32)
            *network = new Gpt<float>(*shape, *weights, layers, held_as, num_threads);
        else
            *network = new Gpt<uint16_t>(*shape, *weights, layers, held_as, num_threads);
        return OK;
    });
}

void nanogpt_destroy(Network* network) { delete network; }

int32_t nanogpt_forward(Network* network, const Chunk* chunks, int32_t num_chunks,
                        const int32_t* tokens, float* logits) {
    return guarded([&] { return network->forward(chunks, num_chunks, tokens, logits); });
}

int32_t nanogpt_copy(Network* network, int32_t from_slot, int32_t to_slot, int32_t num_tokens) {
    return guarded([&] { return network->copy(from_slot, to_slot, num_tokens); });
}

int32_t nanogpt_clear(Network* network, int32_t slot) {
    return guarded([&] { return network->clear(slot); });
}

int64_t nanogpt_weight_bytes(const Network* network) { return network->num_weight_bytes(); }

/// Logits lie in rows of vocab_size rounded up to a multiple of this.
int32_t nanogpt_panel() { return PANEL; }

/// Whether bfloat16 weights are multiplied in bfloat16, and not widened to float32 first.
bool nanogpt_multiplies_bfloat16() { return BFLOAT16_PRODUCTS; }
}
