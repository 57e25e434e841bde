#ifndef TALLY_H
#define TALLY_H

#include <stddef.h>

/* Counts words: runs of ASCII letters, digits and bytes above 127, in lower case. */
struct tally;

struct entry {
    const char *word;
    size_t length;
    size_t count;
};

struct tally *tally_new(void);
void tally_free(struct tally *tally);

/* Adds the words of a piece of text. A word may go on in the next piece. Returns 0, or -1 when memory ran out. */
int tally_add(struct tally *tally, const char *text, size_t length);

/* Ends the last word. Returns 0, or -1 when memory ran out. */
int tally_end(struct tally *tally);

size_t tally_words(const struct tally *tally);
size_t tally_distinct(const struct tally *tally);

/* The most frequent words first, ties in byte order. The array is the caller's to free; NULL when memory ran out. */
struct entry *tally_sorted(const struct tally *tally);

#endif
