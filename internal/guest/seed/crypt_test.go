package seed

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// The vectors are of `openssl passwd -6` (3.0) and `mkpasswd -m sha512crypt`
// (whois 5.5), which agree.
func TestSHA512CryptVectors(t *testing.T) {
	for _, v := range []struct{ password, want string }{
		{"abc", "$6$a$bP930ejn5J.BtkYoM6PwiG5FNjWWmFa0R7pjvLOC1GFPNXhOxHJwnxXMUsfZRTS8JYlCH4SuxJUn8c0cDvpPH/"},
		{"Hello world!", "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"},
		{"pässwörd ✓", "$6$0123456789abcdef$WFyJV/w45/xzH1aNOmAKrF3pSv7uHdgurSLSAXoVN9D4GeTehVf/uH8S5uT85XhzsO8OOkuYEphVKBnG4CTpP1"},
		{strings.Repeat("x", 130), "$6$saltstring$t/vS3tNiwbmeMnRhTQEJC3i7pLg9uwDIDrHMZe.x48YSGH3Yz7i75iqOKQ3x14i1m4/G1kPQA3FsfPQO925OZ."},
	} {
		salt := strings.Split(v.want, "$")[2]
		if got, err := sha512Crypt(v.password, salt); err != nil || got != v.want {
			t.Errorf("%q, salt %q: %s, %v\nwant %s", v.password, salt, got, err, v.want)
		}
	}
}

// Random passwords of every length class, against openssl.
func TestSHA512CryptAsOpenSSL(t *testing.T) {
	tool := qemutest.Path(t, "openssl")
	r := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		n := 1 + r.IntN(200)
		var pw, salt strings.Builder
		for range n {
			pw.WriteByte(byte('!' + r.IntN(94)))
		}
		for range 1 + r.IntN(16) {
			salt.WriteByte(cryptAlphabet[r.IntN(64)])
		}
		cmd := exec.Command(tool, "passwd", "-6", "-salt", salt.String(), "-stdin")
		cmd.Stdin = strings.NewReader(pw.String() + "\n")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got, err := sha512Crypt(pw.String(), salt.String())
		if err != nil || got != strings.TrimSpace(string(out)) {
			t.Errorf("%q, salt %q: %s, %v\nopenssl: %s", pw.String(), salt.String(), got, err, out)
		}
	}
}

func TestSHA512CryptBounds(t *testing.T) {
	if _, err := sha512Crypt(strings.Repeat("x", maxPassword+1), "a"); err == nil {
		t.Error("a password without bound was hashed")
	}
	for _, salt := range []string{"", strings.Repeat("a", 17)} {
		if _, err := sha512Crypt("x", salt); err == nil {
			t.Errorf("salt %q was taken", salt)
		}
	}
}
