/* Unit tests of tally.c: linked with the object file that the build step left. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../src/tally.h"

static int failures;

static void check(int holds, const char *what)
{
    printf("%s - %s\n", holds ? "ok" : "NOT OK", what);
    failures += !holds;
}

int main(void)
{
    struct tally *tally = tally_new();
    const char *text = "The cat, the dog; THE end";
    /* One byte at a time: words go on across pieces. */
    for (size_t i = 0; i < strlen(text); i++)
        tally_add(tally, text + i, 1);
    tally_end(tally);
    struct entry *entries = tally_sorted(tally);
    check(tally_words(tally) == 6, "words are counted");
    check(tally_distinct(tally) == 4, "case does not matter");
    check(strcmp(entries[0].word, "the") == 0 && entries[0].count == 3, "the most frequent word comes first");
    check(strcmp(entries[1].word, "cat") == 0, "ties are in byte order");
    free(entries);
    tally_free(tally);

    tally = tally_new();
    char word[16];
    for (int i = 0; i < 100000; i++)
        tally_add(tally, word, (size_t)snprintf(word, sizeof word, "w%d ", i % 50000));
    tally_end(tally);
    check(tally_distinct(tally) == 50000, "the table grows");
    tally_free(tally);
    return failures != 0;
}
