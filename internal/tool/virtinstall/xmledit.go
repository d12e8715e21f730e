package virtinstall

// edit is one XPath edit of a document.
type edit struct{}

// parseXMLEdits reads --xml.
func (g *guest) parseXMLEdits() error { return nil }
