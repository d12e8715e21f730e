package seed

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"strings"
)

// userData combines the user's own user-data with what c asks for. What it is
// is told by its first line, as cloud-init does.
func (c Config) userData() ([]byte, error) {
	ud, err := plainUserData(c.UserData)
	if err != nil {
		return nil, err
	}
	kind := partType(ud)
	switch {
	case len(bytes.TrimSpace(ud)) == 0, kind == "text/cloud-config":
		return c.mergeCloudConfig(ud)
	case kind == "":
		first, _, _ := strings.Cut(string(ud), "\n")
		return nil, fmt.Errorf("seed: user-data begins with %q, which cloud-init would ignore: begin it with #cloud-config, #! or another header that it knows", clip(first))
	case kind == "text/x-shellscript" && c.User == "" && c.Password == "":
		// Host name and keys are in meta-data too, so the script can stay
		// as it is: CirrOS runs a script, but knows no multi-part.
		return ud, nil
	}
	return c.multiPart(kind, ud)
}

// plainUserData undoes what cloud-init would: gzip, and a byte order mark.
func plainUserData(ud []byte) ([]byte, error) {
	if bytes.HasPrefix(ud, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(ud))
		if err != nil {
			return nil, fmt.Errorf("seed: user-data: %w", err)
		}
		b, err := io.ReadAll(io.LimitReader(z, maxUserData+1))
		if err != nil {
			return nil, fmt.Errorf("seed: user-data: %w", err)
		}
		if len(b) > maxUserData {
			return nil, fmt.Errorf("seed: user-data is more than %d bytes without its compression", maxUserData)
		}
		ud = b
	}
	return bytes.TrimPrefix(ud, []byte("\xef\xbb\xbf")), nil
}

// partTypes are the first words that cloud-init knows, longest first where
// one begins another.
var partTypes = []struct{ prefix, mime string }{
	{"#cloud-config-archive", "text/cloud-config-archive"},
	{"#cloud-config-jsonp", "text/cloud-config-jsonp"},
	{cloudConfigHeader, "text/cloud-config"},
	{"#cloud-boothook", "text/cloud-boothook"},
	{"#include-once", "text/x-include-once-url"},
	{"#include", "text/x-include-url"},
	{"#part-handler", "text/part-handler"},
	{"## template: jinja", "text/jinja2"},
	{"#!", "text/x-shellscript"},
}

const mimeMessage = "mime"

// partType is the MIME type that cloud-init gives the text: it skips leading
// blanks and does not tell capitals from small letters.
func partType(ud []byte) string {
	ud = bytes.TrimLeft(ud, " \t\r\n")
	head := strings.ToLower(string(ud[:min(64, len(ud))]))
	for _, t := range partTypes {
		if strings.HasPrefix(head, t.prefix) {
			return t.mime
		}
	}
	for _, h := range []string{"content-type:", "mime-version:"} {
		if strings.HasPrefix(head, h) {
			return mimeMessage
		}
	}
	return ""
}

// mergeType makes cloud-init merge our part, which comes last, the way that
// mergeCloudConfig does: what is there wins, lists are joined.
const mergeType = "list(append)+dict(no_replace,recurse_list)+str()"

// multiPart puts the user's part and ours in one MIME archive.
func (c Config) multiPart(kind string, ud []byte) ([]byte, error) {
	cc, err := c.cloudConfig()
	if err != nil {
		return nil, err
	}
	if c.needsDefaultUser() && kind != "text/x-shellscript" && kind != "text/cloud-boothook" {
		cc.Users = []string{"default"} // a part of theirs may list users
	}
	n, err := cc.node()
	if err != nil {
		return nil, err
	}
	yml, err := marshal(n)
	if err != nil {
		return nil, err
	}
	ours := part("text/cloud-config", "lamina.cfg", "X-Merge-Type: "+mergeType+"\n", append([]byte(cloudConfigHeader+"\n"), yml...))
	var theirs []byte
	if kind == mimeMessage {
		if theirs, err = messageAsPart(ud); err != nil {
			return nil, err
		}
	} else {
		theirs = part(kind, "user-data", "", ud)
	}
	parts := [][]byte{theirs, ours}
	if kind == "text/cloud-config-jsonp" {
		// A patch needs something to change, and nothing merged over it.
		parts = [][]byte{ours, theirs}
	}
	return archive(parts), nil
}

// part is one part of the archive: text as it is, anything that a mail parser
// may touch in base64.
func part(mimeType, name, headers string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Content-Type: %s; charset=\"utf-8\"\n", mimeType)
	fmt.Fprintf(&b, "Content-Disposition: attachment; filename=%q\n%s", name, headers)
	if isPlain(body) {
		b.WriteString("Content-Transfer-Encoding: 7bit\n\n")
		b.Write(body)
		return b.Bytes()
	}
	b.WriteString("Content-Transfer-Encoding: base64\n\n")
	enc := base64.StdEncoding.EncodeToString(body)
	for len(enc) > 76 {
		b.WriteString(enc[:76] + "\n")
		enc = enc[76:]
	}
	b.WriteString(enc + "\n")
	return b.Bytes()
}

func isPlain(b []byte) bool {
	line := 0
	for _, c := range b {
		line++
		switch {
		case c == '\n':
			line = 0
		case c != '\t' && (c < ' ' || c > '~'), line > 900:
			return false
		}
	}
	return true
}

// messageAsPart makes a part of the user's own MIME message: its headers
// without the version, and its body as it is. cloud-init walks nested
// multi-parts.
func messageAsPart(ud []byte) ([]byte, error) {
	msg, err := mail.ReadMessage(bytes.NewReader(ud))
	if err != nil {
		return nil, fmt.Errorf("seed: user-data is not a MIME message: %w", err)
	}
	ctype := msg.Header.Get("Content-Type")
	if ctype == "" {
		return nil, errors.New("seed: user-data is a MIME message without a Content-Type")
	}
	media, params, err := mime.ParseMediaType(ctype)
	if err != nil {
		return nil, fmt.Errorf("seed: user-data is a MIME message of type %q: %w", clip(ctype), err)
	}
	if strings.HasPrefix(media, "multipart/") && params["boundary"] == "" {
		return nil, fmt.Errorf("seed: user-data is a MIME message of type %q without a boundary", clip(ctype))
	}
	body, err := io.ReadAll(msg.Body)
	if err != nil {
		return nil, fmt.Errorf("seed: user-data: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "Content-Type: %s\n", ctype)
	for _, h := range []string{"Content-Transfer-Encoding", "Content-Disposition", "Merge-Type", "X-Merge-Type"} {
		if v := msg.Header.Get(h); v != "" {
			fmt.Fprintf(&b, "%s: %s\n", h, v)
		}
	}
	b.WriteByte('\n')
	b.Write(body)
	return b.Bytes(), nil
}

// archive joins parts, with a boundary that none of them has.
func archive(parts [][]byte) []byte {
	boundary := "==lamina=="
	for i := 0; ; i++ {
		if !bytes.Contains(bytes.Join(parts, nil), []byte(boundary)) {
			break
		}
		boundary = fmt.Sprintf("==lamina-%d==", i)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=%q\nMIME-Version: 1.0\n\n", boundary)
	for _, p := range parts {
		fmt.Fprintf(&b, "--%s\n%s\n", boundary, p)
	}
	fmt.Fprintf(&b, "--%s--\n", boundary)
	return b.Bytes()
}
