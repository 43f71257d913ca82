NAME = 'events-sdk-python'
VERSION = '0.1.0'
