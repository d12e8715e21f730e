package catalog

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// sum is a checksum: the algorithm's name and the value in lower-case hex. The
// zero sum means none.
type sum struct {
	algo string
	hex  string
}

func (s sum) String() string { return s.algo + ":" + s.hex }

// algorithms are the ones that are taken, by the length of their hex form. MD5
// and SHA-1 are not: both can be forged.
var algorithms = map[int]string{sha256.Size * 2: "sha256", sha512.Size * 2: "sha512"}

func newHash(algo string) hash.Hash {
	if algo == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// parseSum reads a user's "sha256:HEX" or "sha512:HEX"; "" is no checksum.
func parseSum(s string) (sum, error) {
	if s == "" {
		return sum{}, nil
	}
	algo, value, ok := strings.Cut(s, ":")
	algo, value = strings.ToLower(algo), strings.ToLower(value)
	if !ok || algorithms[len(value)] != algo || !isHex(value) {
		return sum{}, fmt.Errorf("checksum %q: expected sha256: and 64 hex digits, or sha512: and 128", s)
	}
	return sum{algo, value}, nil
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s != ""
}

// findSum finds the checksum of a file in what a publisher puts beside it:
//
//	HEX  NAME, HEX *NAME     SHA256SUMS, SHA512SUMS (GNU)
//	SHA256 (NAME) = HEX      CHECKSUM of Fedora and AlmaLinux (BSD)
//	HEX                      one file's own .sha256 or .sha512 (Alpine)
//
// Lines of other kinds (a PGP signature around it, comments, MD5) are passed
// over; of several algorithms the strongest is taken.
func findSum(text []byte, name string) (sum, error) {
	var found, bare sum
	lines := 0
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		file, value, ok := sumLine(line)
		if !ok {
			continue
		}
		lines++
		algo := algorithms[len(value)]
		file = strings.TrimPrefix(file, "./")
		if file == "" {
			bare = sum{algo, strings.ToLower(value)}
			continue
		}
		if file != name {
			continue
		}
		if found.algo == "" || len(value) > len(found.hex) {
			found = sum{algo, strings.ToLower(value)}
		}
	}
	if err := sc.Err(); err != nil {
		return sum{}, err
	}
	switch {
	case found.algo != "":
		return found, nil
	case lines == 1 && bare.algo != "":
		return bare, nil // among others it would say nothing
	case lines == 0:
		return sum{}, fmt.Errorf("it holds no SHA-256 or SHA-512 checksum")
	}
	return sum{}, fmt.Errorf("it holds no checksum of %s", name)
}

// sumLine reads one line: the file's name ("" for a bare value) and the value.
func sumLine(line string) (file, value string, ok bool) {
	if head, value, ok := strings.Cut(line, ") = "); ok {
		algo, file, ok := strings.Cut(head, " (")
		return file, value, ok && strings.EqualFold(algo, algorithms[len(value)]) && isHex(value)
	}
	value, file, _ = strings.Cut(line, " ")
	if algorithms[len(value)] == "" || !isHex(value) {
		return "", "", false
	}
	file = strings.TrimPrefix(strings.TrimLeft(file, " "), "*")
	return file, value, true
}
