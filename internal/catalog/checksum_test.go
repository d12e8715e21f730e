package catalog

import (
	"net/url"
	"strings"
	"testing"
)

var (
	a64  = strings.Repeat("a1", 32)
	b64  = strings.Repeat("b2", 32)
	a128 = strings.Repeat("a1", 64)
	b128 = strings.Repeat("b2", 64)
)

func TestFindSum(t *testing.T) {
	for _, tc := range []struct {
		name, text, want string
	}{
		{"GNU", b64 + "  other.img\n" + a64 + "  x.img\n", "sha256:" + a64},
		{"GNU binary", b64 + " *other.img\n" + a64 + " *x.img\n", "sha256:" + a64},
		{"GNU with a folder", a64 + "  ./x.img\n", "sha256:" + a64},
		{"SHA512SUMS", b128 + "  other.img\n" + a128 + "  x.img\n", "sha512:" + a128},
		{"Windows line ends and capitals", strings.ToUpper(a64) + "  x.img\r\n", "sha256:" + a64},
		{"Fedora", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# other.img: 528154624 bytes\nSHA256 (other.img) = " + b64 + "\n# x.img: 1 bytes\nSHA256 (x.img) = " + a64 + "\n-----BEGIN PGP SIGNATURE-----\n\niQIzBAEBCAAdFiEE\n=abcd\n-----END PGP SIGNATURE-----\n", "sha256:" + a64},
		{"both algorithms", "SHA256 (x.img) = " + b64 + "\nSHA512 (x.img) = " + a128 + "\n", "sha512:" + a128},
		{"MD5 beside it", "MD5 (x.img) = d41d8cd98f00b204e9800998ecf8427e\nSHA256 (x.img) = " + a64 + "\n", "sha256:" + a64},
		{"Alpine", a128 + "\n", "sha512:" + a128},
		{"Alpine without a line end", a128, "sha512:" + a128},
		{"a name that begins alike", b64 + "  x.img.sig\n" + a64 + "  x.img\n", "sha256:" + a64},
		{"a bare value before the named one", b64 + "\n" + a64 + "  x.img\n", "sha256:" + a64},
		{"a bare value before others", a64 + "\n" + b64 + "  other.img\n", "!no checksum of x.img"},
		{"not listed", b64 + "  other.img\n", "!no checksum of x.img"},
		{"MD5SUMS", "d41d8cd98f00b204e9800998ecf8427e  x.img\n", "!no SHA-256 or SHA-512"},
		{"a web page", "<html>login</html>", "!no SHA-256 or SHA-512"},
		{"nothing", "", "!no SHA-256 or SHA-512"},
		{"cut hex", a64[:60] + "  x.img\n", "!no SHA-256"},
		{"algorithm and length differ", "SHA512 (x.img) = " + a64 + "\n", "!no SHA-256"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := findSum([]byte(tc.text), "x.img")
			if want, bad := strings.CutPrefix(tc.want, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, %v; want %q", got, err, want)
				}
				return
			}
			if err != nil || got.String() != tc.want {
				t.Errorf("%v, %v; want %s", got, err, tc.want)
			}
		})
	}
}

func TestParseSum(t *testing.T) {
	for in, want := range map[string]string{
		"sha256:" + a64: "sha256:" + a64, "SHA512:" + strings.ToUpper(b128): "sha512:" + b128, "": ":",
	} {
		if got, err := parseSum(in); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{a64, "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:" + a128, "sha512:" + a64, "sha256:", "sha256:" + strings.Repeat("g", 64), ":"} {
		if _, err := parseSum(in); err == nil || !strings.Contains(err.Error(), "sha256:") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func FuzzFindSum(f *testing.F) {
	f.Add(a64+"  x.img\n", "x.img")
	f.Add("SHA256 (x.img) = "+a64, "x.img")
	f.Add(a128, "")
	f.Fuzz(func(t *testing.T, text, name string) {
		s, err := findSum([]byte(text), name)
		if err == nil && (algorithms[len(s.hex)] != s.algo || !strings.Contains(strings.ToLower(text), s.hex)) {
			t.Errorf("%v", s)
		}
	})
}

// The catalog is sound: every name leads to one entry, every address is https,
// and the checksums lie beside the image.
func TestDefaultCatalog(t *testing.T) {
	seen := map[string]string{}
	families := map[string]bool{}
	for _, e := range Default() {
		for _, n := range append([]string{e.Name}, e.Aliases...) {
			if seen[n] != "" || n == "" || strings.ContainsAny(n, "/ ") {
				t.Errorf("name %q of %s and %s", n, e.Name, seen[n])
			}
			seen[n] = e.Name
			if got, err := Resolve(n); err != nil || got.Name != e.Name {
				t.Errorf("Resolve(%q) = %s, %v", n, got.Name, err)
			}
		}
		family, version, ok := strings.Cut(e.Name, ":")
		if !ok || version == "" {
			t.Errorf("%s has no version", e.Name)
		}
		if !families[family] && seen[family] != e.Name {
			t.Errorf("%s is the first of its family, but %q is %q", e.Name, family, seen[family])
		}
		families[family] = true
		img, err1 := url.Parse(e.URL)
		sums, err2 := url.Parse(e.ChecksumURL)
		if err1 != nil || err2 != nil || img.Scheme != "https" || sums.Scheme != "https" || img.Host != sums.Host || dir(img.Path) != dir(sums.Path) {
			t.Errorf("%s: %s and %s", e.Name, e.URL, e.ChecksumURL)
		}
		if e.User == "" || e.Description == "" || e.MinMemory < 64*mib {
			t.Errorf("%s is not whole: %+v", e.Name, e)
		}
	}
	for _, f := range []string{"cirros", "debian", "ubuntu", "fedora", "almalinux", "alpine"} {
		if !families[f] {
			t.Errorf("no %s", f)
		}
	}
	if e, err := Resolve("debian"); err != nil || e.Name != "debian:13" {
		t.Errorf("debian is %s, %v", e.Name, err)
	}
}

func dir(p string) string { return p[:strings.LastIndex(p, "/")] }

func TestResolveSuggests(t *testing.T) {
	for ref, want := range map[string]string{
		"debain": "did you mean debian:13 or debian:12?", "debian:11": "did you mean debian:13 or debian:12?",
		"deb": "did you mean debian:13", "Fedora": "did you mean fedora:44?", "windows": "it has cirros:0.6, debian:13",
	} {
		if _, err := Resolve(ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}
