// Package nearest finds the word that a person most likely meant.
package nearest

// Word returns the known word that is nearest to word, "" where none is near.
func Word(word string, known []string) string {
	best, bestAt := "", max(1, len(word)/3)+1
	for _, k := range known {
		if d := Distance(word, k, bestAt-1); d < bestAt {
			best, bestAt = k, d
		}
	}
	return best
}

// Distance is the number of letters to insert, remove, replace or swap with
// their neighbour that makes b of a (optimal string alignment); most+1 where
// the lengths alone say that it is more than most.
func Distance(a, b string, most int) int {
	if len(a) > len(b)+most || len(b) > len(a)+most {
		return most + 1
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
