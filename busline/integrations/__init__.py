"""What joins busline to other libraries; each module needs an extra, which it names when it is missing."""
