// Package nearest finds the word that somebody meant who wrote another one.
package nearest

import "strings"

// maxWord is how long a word may be that is compared, in bytes: what is longer is no slip.
const maxWord = 64

// Word returns the known word that a person most likely meant, or "".
func Word(word string, known []string) string {
	best, limit := "", min(2, len(word)/2)
	for _, k := range known {
		if strings.EqualFold(k, word) {
			return k
		}
		if n := distance(word, k, limit); n <= limit {
			best, limit = k, n-1
		}
	}
	return best
}

// distance is the number of bytes to add, remove, change or swap with their neighbour to get from a to b
// (optimal string alignment), or more than limit if it is that.
func distance(a, b string, limit int) int {
	if len(a) > maxWord || max(len(a)-len(b), len(b)-len(a)) > limit {
		return limit + 1
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
