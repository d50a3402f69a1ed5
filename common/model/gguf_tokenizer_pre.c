/* gguf_tokenizer_pre.c - the pre-tokenizers behind the names under tokenizer.ggml.pre.
 *
 * A GGUF file names its pre-tokenizer and leaves the expressions to the program; these are the ones
 * of the models' published tokenizer.json. */
#include "common/model/gguf_tokenizer_impl.h"

#include <string.h>

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
#define WORDS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define REST " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define HAN_AND_HANGUL "[一-龥ࠀ-一가-퟿]+"

static const gguf_pre_tokenizer known[] = {
    {.names = "gpt-2 phi-2 jais", .byte_regex = true},
    {.names = "olmo mpt", .byte_regex = true, .nfc = true},
    {.names = "llama-bpe llama3 llama-v3",
     .splits = {CONTRACTIONS WORDS "\\p{N}{1,3}|" REST},
     .ignore_merges = true},
    {.names = "dbrx smaug-bpe", .splits = {CONTRACTIONS WORDS "\\p{N}{1,3}|" REST}},
    {.names = "qwen2", .splits = {CONTRACTIONS WORDS "\\p{N}|" REST}, .nfc = true},
    {.names = "deepseek-r1-qwen", .splits = {CONTRACTIONS WORDS "\\p{N}|" REST}},
    {.names = "tekken",
     .splits = {"[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER
                "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     .ignore_merges = true},
    {.names = "smollm starcoder refact codeshell", .digits = 2, .byte_regex = true},
    {.names = "command-r", .digits = 2, .byte_regex = true, .nfc = true},
    {.names = "deepseek-llm",
     .splits =
         {"[\\r\\n]",
          "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-"
          "ᲺᲽ-"
          "Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
          "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
          "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-"
          "𐳲𑢠-"
          "𑣟𞤀-𞥃]+",
          "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", HAN_AND_HANGUL},
     .digits = 1},
    {.names = "deepseek-coder",
     .splits = {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", HAN_AND_HANGUL},
     .digits = 2},
    {.names = "deepseek-v3",
     .splits = {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
                "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
                "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
};

const gguf_pre_tokenizer *gguf_pre_find(const char *name) {
    const size_t length = strlen(name);
    if (length == 0 || strchr(name, ' ')) return NULL;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        for (const char *at = known[i].names; at; at = strchr(at, ' ')) {
            if (*at == ' ') at++;
            if (strncmp(at, name, length) == 0 && (at[length] == ' ' || at[length] == '\0'))
                return &known[i];
        }
    return NULL;
}

json_t *gguf_pre_json(const gguf_pre_tokenizer *pre) {
    json_t *steps = json_array();
    for (size_t i = 0; i < sizeof(pre->splits) / sizeof(pre->splits[0]) && pre->splits[i]; i++)
        json_array_append_new(steps, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split",
                                               "pattern", "Regex", pre->splits[i], "behavior",
                                               "Isolated", "invert", 0));
    if (pre->digits)
        json_array_append_new(steps, json_pack("{s:s, s:b}", "type", "Digits", "individual_digits",
                                               pre->digits == 2));
    json_array_append_new(steps,
                          json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space",
                                    0, "trim_offsets", 1, "use_regex", (int)pre->byte_regex));
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", steps);
}
