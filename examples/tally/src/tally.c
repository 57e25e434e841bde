#include "tally.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    char *word;
    size_t length;
    size_t count;
    uint64_t hash;
};

struct tally {
    struct slot *slots;
    size_t capacity; /* a power of two */
    size_t distinct;
    size_t words;
    char *word; /* the word that is being read */
    size_t word_length;
    size_t word_capacity;
};

enum { FIRST_CAPACITY = 1024, FIRST_WORD = 64 };

struct tally *tally_new(void)
{
    struct tally *tally = calloc(1, sizeof *tally);
    if (!tally)
        return NULL;
    tally->capacity = FIRST_CAPACITY;
    tally->word_capacity = FIRST_WORD;
    tally->slots = calloc(tally->capacity, sizeof *tally->slots);
    tally->word = malloc(tally->word_capacity);
    if (!tally->slots || !tally->word) {
        tally_free(tally);
        return NULL;
    }
    return tally;
}

void tally_free(struct tally *tally)
{
    if (!tally)
        return;
    if (tally->slots)
        for (size_t i = 0; i < tally->capacity; i++)
            free(tally->slots[i].word);
    free(tally->slots);
    free(tally->word);
    free(tally);
}

static uint64_t hash_of(const char *word, size_t length)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)word[i]) * 1099511628211u;
    return hash;
}

static struct slot *find(struct slot *slots, size_t capacity, const char *word, size_t length, uint64_t hash)
{
    for (size_t i = hash & (capacity - 1);; i = (i + 1) & (capacity - 1)) {
        struct slot *slot = &slots[i];
        if (!slot->word)
            return slot;
        if (slot->hash == hash && slot->length == length && memcmp(slot->word, word, length) == 0)
            return slot;
    }
}

static int grow(struct tally *tally)
{
    size_t capacity = tally->capacity * 2;
    struct slot *slots = calloc(capacity, sizeof *slots);
    if (!slots)
        return -1;
    for (size_t i = 0; i < tally->capacity; i++) {
        struct slot *old = &tally->slots[i];
        if (old->word)
            *find(slots, capacity, old->word, old->length, old->hash) = *old;
    }
    free(tally->slots);
    tally->slots = slots;
    tally->capacity = capacity;
    return 0;
}

int tally_end(struct tally *tally)
{
    size_t length = tally->word_length;
    if (length == 0)
        return 0;
    if (tally->distinct * 2 >= tally->capacity && grow(tally) != 0)
        return -1;
    uint64_t hash = hash_of(tally->word, length);
    struct slot *slot = find(tally->slots, tally->capacity, tally->word, length, hash);
    if (!slot->word) {
        slot->word = malloc(length + 1);
        if (!slot->word)
            return -1;
        memcpy(slot->word, tally->word, length);
        slot->word[length] = '\0';
        slot->length = length;
        slot->hash = hash;
        tally->distinct++;
    }
    slot->count++;
    tally->words++;
    tally->word_length = 0;
    return 0;
}

static int push(struct tally *tally, char byte)
{
    if (tally->word_length == tally->word_capacity) {
        char *word = realloc(tally->word, tally->word_capacity * 2);
        if (!word)
            return -1;
        tally->word = word;
        tally->word_capacity *= 2;
    }
    tally->word[tally->word_length++] = byte;
    return 0;
}

int tally_add(struct tally *tally, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte >= 'A' && byte <= 'Z')
            byte = (unsigned char)(byte - 'A' + 'a');
        int is_word = (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || byte > 127;
        if ((is_word ? push(tally, (char)byte) : tally_end(tally)) != 0)
            return -1;
    }
    return 0;
}

size_t tally_words(const struct tally *tally)
{
    return tally->words;
}

size_t tally_distinct(const struct tally *tally)
{
    return tally->distinct;
}

static int by_count(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    if (a->count != b->count)
        return a->count < b->count ? 1 : -1;
    return strcmp(a->word, b->word);
}

struct entry *tally_sorted(const struct tally *tally)
{
    struct entry *entries = malloc((tally->distinct + 1) * sizeof *entries);
    if (!entries)
        return NULL;
    size_t n = 0;
    for (size_t i = 0; i < tally->capacity; i++) {
        const struct slot *slot = &tally->slots[i];
        if (slot->word)
            entries[n++] = (struct entry){slot->word, slot->length, slot->count};
    }
    qsort(entries, n, sizeof *entries, by_count);
    return entries;
}
