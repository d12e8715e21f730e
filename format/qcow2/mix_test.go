package qcow2

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

// axes are the features of an image with their values. The first value of
// each is the plainest: all of them together are an image that can be made.
var axes = []struct {
	name   string
	values []string
}{
	{"cluster_size", []string{"65536", "512", "1024", "2048", "4096", "8192", "16384", "32768", "131072", "262144", "524288", "1048576", "2097152"}},
	{"refcount_bits", []string{"16", "1", "2", "4", "8", "32", "64"}},
	{"packing", []string{"none", "zlib", "zstd"}},
	{"encryption", []string{"none", "luks", "aes"}},
	{"data_file", []string{"none", "plain", "raw"}},
	{"snapshots", []string{"none", "some"}},
	{"bitmaps", []string{"none", "some"}},
	{"compat", []string{"1.1", "0.10"}},
	{"extended_l2", []string{"off", "on"}},
	{"lazy_refcounts", []string{"off", "on"}},
	{"backing", []string{"none", "some"}},
	{"preallocation", []string{"off", "metadata"}},
}

// mix holds an image's value of each axis by its index.
type mix [12]int

// get returns the value of the named axis.
func (m mix) get(axis string) string {
	for i, a := range axes {
		if a.name == axis {
			return a.values[m[i]]
		}
	}
	panic("no axis " + axis)
}

// is reports whether the axis has one of the values.
func (m mix) is(axis string, values ...string) bool {
	return slices.Contains(values, m.get(axis))
}

func (m mix) has(axis string) bool { return !m.is(axis, "none", "off") }

// allowed reports whether the stock tools make such an image. The tests hold
// it to that in both ways: they make an image with each pair of values that is
// allowed, and try to make one with each pair that is not.
func (m mix) allowed() bool {
	cluster, _ := strconv.Atoi(m.get("cluster_size"))
	switch {
	case m.is("compat", "0.10") && (!m.is("refcount_bits", "16") || m.is("packing", "zstd") || m.has("data_file") ||
		m.has("bitmaps") || m.has("extended_l2") || m.has("lazy_refcounts")):
	case m.has("extended_l2") && cluster < minSubclusterSize*subclustersPerCluster:
	case m.has("packing") && (m.has("encryption") || m.has("data_file") || m.has("preallocation")):
	case m.has("snapshots") && (m.has("data_file") || m.is("refcount_bits", "1")):
	case m.has("snapshots") && m.has("packing") && m.is("refcount_bits", "2"): // three clusters packed into one, and twice that
	case m.has("backing") && (m.is("data_file", "raw") || m.has("preallocation") && !m.has("extended_l2")):
	default:
		return true
	}
	return false
}

func (m mix) variant() variant {
	cluster, _ := strconv.ParseInt(m.get("cluster_size"), 10, 64)
	bits, _ := strconv.Atoi(m.get("refcount_bits"))
	return variant{cluster, m.get("compat"), bits, m.get("packing"), m.has("extended_l2")}
}

// mixOf returns the mix of an image without further features.
func mixOf(v variant) (m mix) {
	extended := "off"
	if v.sub {
		extended = "on"
	}
	for i, a := range axes {
		switch a.name {
		case "cluster_size":
			m[i] = slices.Index(a.values, strconv.FormatInt(v.cluster, 10))
		case "refcount_bits":
			m[i] = slices.Index(a.values, strconv.Itoa(v.bits))
		case "packing":
			m[i] = slices.Index(a.values, v.packing)
		case "compat":
			m[i] = slices.Index(a.values, v.compat)
		case "extended_l2":
			m[i] = slices.Index(a.values, extended)
		}
	}
	return m
}

// String names what is not the plainest.
func (m mix) String() string {
	s := "cluster_size=" + m.get("cluster_size")
	for i, a := range axes[1:] {
		if v := m[i+1]; v > 0 {
			s += " " + a.name + "=" + a.values[v]
		}
	}
	return s
}

// pair is two axes with a value each, the first axis before the second.
type pair struct{ i, v, j, w int }

// mix is the plainest image with the pair.
func (p pair) mix() (m mix) {
	m[p.i], m[p.j] = p.v, p.w
	return m
}

// pairs yields the pairs that the image has.
func (m mix) pairs(yield func(pair) bool) {
	for j := range m {
		for i := range j {
			if !yield(pair{i, m[i], j, m[j]}) {
				return
			}
		}
	}
}

// pairs returns all pairs of values: those that are allowed, and the others.
func pairs() (allowed, forbidden []pair) {
	for j := range axes {
		for i := range j {
			for v := range axes[i].values {
				for w := range axes[j].values {
					if p := (pair{i, v, j, w}); p.mix().allowed() {
						allowed = append(allowed, p)
					} else {
						forbidden = append(forbidden, p)
					}
				}
			}
		}
	}
	return allowed, forbidden
}

// mixes returns images that have, together with those of variants, every
// allowed pair of values; and the whole product of encryption, data file,
// snapshots and bitmaps.
func mixes() []mix {
	r := rand.New(rand.NewPCG(1, 2))
	left := map[pair]bool{}
	allowed, _ := pairs()
	for _, p := range allowed {
		left[p] = true
	}
	for _, v := range variants() {
		for p := range mixOf(v).pairs {
			delete(left, p)
		}
	}
	var all []mix
	add := func(fixed ...int) { // with these axes as the last of all has them
		m := fill(all[len(all)-1], fixed, left, r)
		all[len(all)-1] = m
		for p := range m.pairs {
			delete(left, p)
		}
	}
	const small, end = 3, 7 // the axes of the product
	var product func(m mix, axis int)
	product = func(m mix, axis int) {
		if axis < end {
			for v := range axes[axis].values {
				m[axis] = v
				product(m, axis+1)
			}
		} else if m.allowed() {
			all = append(all, m)
			add(small, small+1, small+2, small+3)
		}
	}
	product(mix{}, small)
	for _, p := range allowed {
		if left[p] {
			all = append(all, p.mix())
			add(p.i, p.j)
		}
	}
	return all
}

// fill gives the axes that are not fixed values with as many of the pairs that
// are left as it finds.
func fill(start mix, fixed []int, left map[pair]bool, r *rand.Rand) (best mix) {
	most := -1
	for range 20 {
		m, set, sum := start, slices.Clone(fixed), 0
		for _, i := range r.Perm(len(axes)) {
			if slices.Contains(fixed, i) {
				continue
			}
			top, order := -1, r.Perm(len(axes[i].values))
			var keep int
			for _, v := range order {
				try := m
				try[i] = v
				if !try.allowed() {
					continue
				}
				n := 0
				for _, j := range set {
					if p := (pair{min(i, j), try[min(i, j)], max(i, j), try[max(i, j)]}); left[p] {
						n++
					}
				}
				// A LUKS header costs the stock tool a second.
				if axes[i].name == "encryption" && v == 1 && n == 0 {
					n = -1
				}
				if n > top {
					top, keep = n, v
				}
			}
			m[i] = keep
			set = append(set, i)
			sum += max(top, 0)
		}
		if sum > most {
			best, most = m, sum
		}
	}
	return best
}

// TestMixes holds that the images of the tests are what they are said to be.
func TestMixes(t *testing.T) {
	all := mixes()
	allowed, forbidden := pairs()
	seen := map[pair]bool{}
	product := map[string]bool{}
	luks := 0
	for _, m := range all {
		if !m.allowed() {
			t.Errorf("%s is not allowed", m)
		}
		for p := range m.pairs {
			seen[p] = true
		}
		product[fmt.Sprint(m[3:7])] = true
		if m.is("encryption", "luks") {
			luks++
		}
	}
	for _, v := range variants() {
		if m := mixOf(v); m.variant() != v || !m.allowed() {
			t.Errorf("%s is %s", v, m)
		}
		for p := range mixOf(v).pairs {
			seen[p] = true
		}
	}
	for _, p := range allowed {
		if !seen[p] {
			t.Errorf("no image is %s", p.mix())
		}
	}
	if len(product) != 3*(3+1)*2 {
		t.Errorf("%d combinations of encryption, data file, snapshots and bitmaps", len(product))
	}
	t.Logf("%d images, %d of them with LUKS; %d pairs allowed, %d forbidden", len(all), luks, len(allowed), len(forbidden))
}
